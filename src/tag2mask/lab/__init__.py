"""What trains and measures the networks of the embedded world, and the demo: above stages, and nothing needs it.

pretrain            a CLIP, contrastively, on scenes, captions and tags: ``pretrain_recipe`` says how, ``cache``
                    and ``views`` bring the scenes, ``vocabulary`` the words, ``towers``, ``contrastive``,
                    ``losses`` and ``lessons`` are the network and what it learns by, ``watch`` looks at it
train_classifier    the small ResNet, on scenes and tags: ``classifier`` says how. ``teacher`` makes pseudo masks
                    from it, for the lessons of the CLIP
pretrain_dino       an image transformer that teaches itself on scenes: ``self_distil_recipe`` says how,
                    ``self_distil`` what it learns by, ``contacts`` whether CD-CLIP's boundaries can learn from it
pretrain_deit       an image transformer, on scenes, tags and the ResNet's answers, for MCTformer to start from
measure             a CLIP on scenes that it has not seen; ``bench`` holds CLIP-ES under many options, in memory
demo                the whole way from tags to a report, beside its floors
"""
