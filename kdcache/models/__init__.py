"""In: a name, C and an image size. Out: a model, of kdcache, torchvision or timm."""
