# tag2mask in a container. It was written with care, but has not been built by us: no container engine was at hand.
#
#   docker build -t tag2mask .
#   docker run --rm --user "$(id -u)" -v "$PWD:/data" -v tag2mask-cache:/cache tag2mask label photos -o runs/photos
#
# With a GPU, on a base with CUDA (Ubuntu 24.04 or another system whose Python is 3.11 or newer). PyTorch brings the
# CUDA libraries; TORCH_INDEX is the address that pytorch.org's "Get started" page shows for your CUDA:
#
#   docker build -t tag2mask-cuda --build-arg BASE=nvidia/cuda:12.8.1-base-ubuntu24.04 \
#     --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu128 .
#   docker run --rm --gpus all --user "$(id -u)" -v "$PWD:/data" -v tag2mask-cache:/cache tag2mask-cuda doctor
ARG BASE=python:3.12-slim
FROM ${BASE}

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

RUN python3 -c 'import ensurepip, venv' 2>/dev/null || { \
      apt-get update && apt-get install -y --no-install-recommends python3 python3-venv && rm -rf /var/lib/apt/lists/*; }
RUN python3 -m venv /opt/tag2mask
ENV PATH=/opt/tag2mask/bin:$PATH

WORKDIR /build
COPY constraints.txt ./
RUN pip install --no-cache-dir -c constraints.txt --index-url "${TORCH_INDEX}" torch
COPY pyproject.toml README.md LICENSE ./
COPY src ./src
RUN pip install --no-cache-dir -c constraints.txt ".[fast,transformers,export]"

# whoever runs it: fetched weights stay in /cache, and compiled loops
RUN mkdir -p /cache /data && chmod 1777 /cache /data
ENV HOME=/cache HF_HOME=/cache/huggingface NUMBA_CACHE_DIR=/cache/numba
WORKDIR /data
ENTRYPOINT ["tag2mask"]
CMD ["--help"]
