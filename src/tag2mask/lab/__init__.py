"""What trains and measures the networks of the embedded world, and the demo: above stages, and nothing needs it.

pretrain            a CLIP, contrastively, on scenes, captions and tags: ``pretrain_recipe`` says how, ``cache``
                    and ``views`` bring the scenes, ``vocabulary`` the words, ``towers``, ``contrastive``,
                    ``losses`` and ``lessons`` are the network and what it learns by, ``watch`` looks at it
train_classifier    the small ResNet, on scenes and tags: ``classifier`` says how. ``teacher`` makes pseudo masks
                    from it, for the lessons of the CLIP
measure             a CLIP on scenes that it has not seen; ``bench`` holds CLIP-ES under many options, in memory
demo                the whole way from tags to a report, beside its floors
"""
