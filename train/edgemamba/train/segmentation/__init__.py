"""Training and evaluation of segmenters, of pictures and of volumes, on MONAI's losses, metrics and sliding windows."""
