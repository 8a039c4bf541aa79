"""What arguments about images choose from."""

# channel mean and deviation in [0, 1]: ImageNet's, CIFAR-10's, iNaturalist 2018's (Kang et al. 2020)
CHANNELS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "cifar": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "inaturalist": ((0.466, 0.471, 0.380), (0.195, 0.194, 0.192)),
}
AUGMENTS = ("resized_crop", "pad_crop", "plain")
VAL_SOURCES = ("own", "unused", "heldout", "none")
