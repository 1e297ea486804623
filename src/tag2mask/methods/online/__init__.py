"""What methods share whose masks arise while they train a decoder over a frozen CLIP: WeCLIP and CD-CLIP.

``teacher`` makes class maps and pseudo labels of a batch, ``boundaries`` those between super-classes, ``training`` is
Lightning's side, and ``method`` the rest of a method: options, fit, load, maps.
"""
