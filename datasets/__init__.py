"""Long-tailed data sets by name. A data set is one file and one line in `DATASETS`."""

from utils.base.lazy import Registry, face

DATASETS = Registry(
    {
        "cifar100_lt": "datasets.cifar_lt:build_cifar100_lt",
        "cifar10_lt": "datasets.cifar_lt:build_cifar10_lt",
        "digits_lt": "datasets.digits_lt:build_digits_lt",
        "imagenet_lt": "datasets.listed.published:build_imagenet_lt",
        "places_lt": "datasets.listed.published:build_places_lt",
        "inaturalist18": "datasets.listed.published:build_inaturalist18",
        "folder": "datasets.listed.own:build_folder",
        "list": "datasets.listed.own:build_list",
    }
)
PUBLISHED_DATASETS = ("imagenet_lt", "places_lt", "inaturalist18")
OWN_DATASETS = ("folder", "list")  # a user's own images
FILE_DATASETS = (*PUBLISHED_DATASETS, *OWN_DATASETS)  # read from disk as they go
# What arguments about images choose from. CHANNELS: mean and deviation of every channel in [0, 1]; source of
# iNaturalist 2018's: Kang et al. 2020; of clip: OpenAI's; half: of EfficientNetV2-L, SigLIP and others.
CHANNELS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "cifar": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "inaturalist": ((0.466, 0.471, 0.380), (0.195, 0.194, 0.192)),
}
AUGMENTS = ("resized_crop", "pad_crop", "plain")
VAL_SOURCES = ("own", "unused", "heldout", "none")
__getattr__, __all__ = face(
    __name__,
    {
        "build": "build_data data_name place_name",
        "long_tail": "long_tail_counts shot_groups",
        "types": "FileSet FileViews ImageSet LongTailedData ViewSpec",
    },
)
