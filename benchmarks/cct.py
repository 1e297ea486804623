"""A tenth of the pixel labels and tags of the rest, on Storybook: what CCT and pseudo masks add to each other.

    python benchmarks/cct.py [-n 300] [--test 100] [--steps 250] [--work DIR] [--out docs/cct.md]

The same network, the same number of steps and the same held-out scenes in every row. With --work what was drawn,
labelled and trained is kept, and the same command goes on where it was.
"""

from __future__ import annotations

import argparse
import platform
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory

from tag2mask.process import tune_process

tune_process()  # as the command line does, before torch is loaded

import torch

from tag2mask import __version__
from tag2mask.data import read_voc
from tag2mask.data.columns import Columns
from tag2mask.data.image import read_image
from tag2mask.methods.clip_es import ClipES
from tag2mask.models.weights import load_clip
from tag2mask.ops.metrics import confusion_matrix, metrics
from tag2mask.run.folder import Run
from tag2mask.run.progress import progress
from tag2mask.segment.network import SegmentationNet, load_network
from tag2mask.segment.test_time import TestTime, predict_labels
from tag2mask.stages.evaluate import evaluate
from tag2mask.stages.label import label
from tag2mask.storybook import render
