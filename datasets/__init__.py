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
__getattr__, __all__ = face(
    __name__,
    {
        "build": "build_data data_name place_name",
        "long_tail": "long_tail_counts shot_groups",
        "types": "FileSet FileViews ImageSet LongTailedData ViewSpec",
    },
)
