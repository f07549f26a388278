"""The data sets: one module per family, in numpy only. Here is their metadata, readable without loading any of them."""

from __future__ import annotations

from harness.suite_info import SuiteInfo

_SIZES = {
    "rho": "fraction of train and val images whose square shows their own class's grey, 0 to 1 (default 1.0)",
    "n_val": "validation images, at the training rho",
    "n_val_groups": "images of the group-balanced validation split, a multiple of 20; 0 for none",
}
_MNIST_SIZES = {
    **_SIZES,
    "n_train": "training images (default 4000; with full_train all that val and val_groups leave)",
    "n_val": f"{_SIZES['n_val']} (default 500)",
    "n_val_groups": f"{_SIZES['n_val_groups']} (default 500)",
    "n_test": "test images drawn by the data seed (default: the official 10000)",
    "full_train": "draw from all 60000 training images, the critic pool included: Ross' curve only (default false)",
}
_ROSS = "Ross, Hughes, Doshi-Velez 2017, Right for the Right Reasons (IJCAI)"

DECOY_DIGITS = SuiteInfo(
    name="decoy_digits",
    summary="small handwritten digits (bundled, no download) with a grey 4x4 corner square that tells the class",
    factory="suites.decoy:DecoyDigits",
    source="synthetic",  # real digits, but the shortcut is planted
    version="1",
    licence="digits: Alpaydin & Kaynak, UCI, CC BY 4.0 (as bundled with scikit-learn)",
    citation=f"{_ROSS}; Alpaydin, Kaynak 1998, Optical Recognition of Handwritten Digits (UCI)",
    parameters={
        **_SIZES,
        "n_train": "training images (default 950)",
        "n_val": f"{_SIZES['n_val']} (default 100)",
        "n_val_groups": f"{_SIZES['n_val_groups']} (default 100)",
        "n_test": "test images (default: the rest of the 1497, 347)",
    },
    descriptions="suites:descriptions/digits.yaml",
)
DECOY_MNIST = SuiteInfo(
    name="decoy_mnist",
    summary="MNIST with a grey corner square that tells the class",
    factory="suites.decoy:DecoyMNIST",
    source="synthetic",
    version="1",
    licence="MNIST: LeCun, Cortes, Burges; commonly given as CC BY-SA 3.0",
    citation=f"{_ROSS}; cdep: Rieger et al. 2020, Interpretations are useful (ICML); LeCun et al. 1998",
    parameters={
        "variant": "ross (4x4, random test grey) or cdep (5x5, inverted test grey)",
        "shape": "square, disc or cross (default square)",
        "scale": "enlarge all images by this whole factor (default 1: 28 pixels)",
        **_MNIST_SIZES,
    },
    descriptions="suites:descriptions/digits.yaml",
)
DECOY_FASHION = SuiteInfo(
    name="decoy_fashion",
    summary="Fashion-MNIST with a grey 4x4 corner square that tells the class",
    factory="suites.decoy:DecoyFashion",
    source="synthetic",
    version="1",
    licence="Fashion-MNIST: Zalando SE, MIT",
    citation=f"{_ROSS}; Xiao, Rasul, Vollgraf 2017, Fashion-MNIST (arXiv:1708.07747)",
    parameters=_MNIST_SIZES,
    descriptions="suites:descriptions/clothes.yaml",
)
FOLDER = SuiteInfo(
    name="folder",
    summary="your own images: a CSV of files, splits, labels and, where known, attributes and masks",
    factory="suites.folder:FolderSuite",
    source="real",
    version="1",
    licence="that of your images",
    citation="",
    parameters={
        "csv": "path of the CSV (docs/add_a_suite.md lists its columns)",
        "root": "folder that the paths in the CSV are relative to (default: the CSV's folder)",
        "size": "images are resized to size x size pixels (default 64)",
        "mode": "RGB or L (grey) (default RGB)",
        "name": "name in tables (default: the CSV's file name)",
    },
)
_ISIC = {
    "size": "images are shown at size x size pixels (default 64)",
    "layout": "how the data lies on disk: curated, 2017, 2018, 2019, 2020, ham10000 or isic-cli (default curated)",
    "root": "folder of the data (default: isic in VABENCH_DATA)",
    "patches": "folder of patch masks named after their images, for layouts that bring none (default: none)",
}
_CODELLA = "Codella et al. 2017 (arXiv:1710.05006); Codella et al. 2019 (arXiv:1902.03368); ISIC Archive"

ISIC_PATCHES = SuiteInfo(
    name="isic_patches",
    summary="skin lesions, with real coloured patches transplanted onto a set share of one class",
    factory="suites.isic:IsicPatches",
    source="real",  # every pixel comes from a photograph, patches too; only where a patch goes is planted
    version="1",
    licence="ISIC 2017: CC0; test lesion masks CC BY-NC 4.0 (see the manifest of your layout)",
    citation=f"{_CODELLA}; patches: Rieger et al. 2020, Interpretations are useful (ICML)",
    parameters={
        "rho": "fraction of train and val images with a patch exactly if not of the target class (default 0.9)",
        "target": "seborrheic_keratosis, melanoma (weak below 224 pixels) or malignant (default seborrheic_keratosis)",
        "n_train": "training images (default: all, 1615 or so in the curated layout)",
        **_ISIC,
    },
    descriptions="suites:descriptions/isic",
)
ISIC_NATURAL = SuiteInfo(
    name="isic_natural",
    summary="skin lesions with coloured patches as they occur: on benign ones alone",
    factory="suites.isic:IsicNatural",
    source="real",
    version="1",
    licence="ISIC 2017: CC0; test lesion masks CC BY-NC 4.0 (see the manifest of your layout)",
    citation=f"{_CODELLA}; Rieger et al. 2020, Interpretations are useful (ICML)",
    parameters={"target": "malignant or melanoma (default malignant)", **_ISIC},
    descriptions="suites:descriptions/isic",
)
_LETTERS = {
    "rho": "fraction of train and val images with R on class 1 and L on class 0 (default 0.9)",
    "size": "images are shown at size x size pixels (default 64)",
    "n_train": "training images (default: all)",
    "root": "folder of the data (default: {folder} in VABENCH_DATA)",
}
_SPLIT = "drawn (patients shared out by the data seed) or given (the data set's own splits) (default {default})"
_KERMANY = "Kermany, Zhang, Goldbaum 2018 (Mendeley Data rscbjbr9sj v2); Kermany et al. 2018 (Cell 172:1122)"
_NIH = "Wang et al. 2017, ChestX-ray8 (CVPR); NIH Clinical Center, https://nihcc.app.box.com/v/ChestXray-NIHCC"
_ARCHIVE = {
    "limit": "films per class and split of a large set, chosen by a hash; 0: all (default 2000)",
    "partial": "leave films without a file out instead of refusing (default false)",
}
_DESCRIBED = "suites:descriptions/radiographs"

KERMANY_MARKERS = SuiteInfo(
    name="kermany_markers",
    summary="bacterial against viral pneumonia, with a letter L or R inserted on a set share of either class",
    factory="suites.chest_xray:KermanyMarkers",
    source="real",  # the films; the letter is drawn
    version="1",
    licence="CC BY 4.0",
    citation=_KERMANY,
    parameters={
        **_LETTERS,
        "root": _LETTERS["root"].format(folder="cxr"),
        "split": _SPLIT.format(default="drawn"),
        "layout": "curated, or official (the chest_xray folder) (default curated)",
        "boxes": "layout=official: table of the burned-in markers' boxes, so that they can be erased (default: none)",
    },
    descriptions=_DESCRIBED,
)
KERMANY_NATURAL = SuiteInfo(
    name="kermany_natural",
    summary="normal against pneumonia with the burned-in R, whose font tells the class and which no model uses",
    factory="suites.chest_xray:KermanyNatural",
    source="real",
    version="1",
    licence="CC BY 4.0",
    citation=_KERMANY,
    parameters={
        "size": "images are shown at size x size pixels (default 128: the R is 3.5 x 4 pixels there)",
        "split": _SPLIT.format(default="drawn"),
        "layout": "curated: the boxes of the markers are known there alone",
        "root": _LETTERS["root"].format(folder="cxr"),
    },
    descriptions=_DESCRIBED,
)
NIH_CHEST = SuiteInfo(
    name="nih_chest",
    summary="NIH chest films: a finding with an inserted letter L or R, or pneumothorax with real chest drains",
    factory="suites.chest_xray:NihChest",
    source="real",
    version="1",
    licence="NIH: no restriction on use, attribution required",
    citation=f"{_NIH}; drains: Weng et al., FastDiME (github.com/nina-weng/FastDiME_Med)",
    parameters={
        "attribute": "letter, or drain (layout=nih and drains=) (default letter)",
        "target": "finding of class 1 (default Pneumonia; with drains Pneumothorax)",
        **_LETTERS,
        "root": _LETTERS["root"].format(folder="cxr"),
        "layout": "curated (1,000 films) or nih (the full set) (default curated)",
        "drains": "nih_drain_meta.csv, the table of chest drains",
        **_ARCHIVE,
        "split": _SPLIT.format(default="given"),
    },
    descriptions=_DESCRIBED,
)
CHEST_MARKERS = SuiteInfo(
    name="chest_markers",
    summary="a finding in CheXpert, MIMIC-CXR-JPG, RSNA or the full NIH set, with an inserted letter L or R",
    factory="suites.chest_xray:ChestMarkers",
    source="real",
    version="1",
    licence="that of the set: CheXpert, MIMIC and RSNA must not be passed on (see the manifest)",
    citation=(
        f"{_NIH}; CheXpert: Irvin et al. 2019 (arXiv:1901.07031); MIMIC-CXR-JPG: Johnson et al. 2019 "
        f"(arXiv:1901.07042); RSNA: Shih et al. 2019 (Radiology: AI 1:e180041)"
    ),
    parameters={
        "layout": "nih, chexpert, mimic or rsna",
        **_LETTERS,
        "root": "folder of the set",
        "target": "finding of class 1 (default Pneumonia)",
        "uncertain": "what -1 of CheXpert and MIMIC counts as: drop, positive or negative (default drop)",
        **_ARCHIVE,
        "split": _SPLIT.format(default="given"),
    },
    descriptions=_DESCRIBED,
)
KNEE_MARKERS = SuiteInfo(
    name="knee_markers",
    summary="knee osteoarthritis (KL grade 2 or more), with a letter L or R inserted on a set share of either class",
    factory="suites.knee_xray:KneeMarkers",
    source="real",
    version="1",
    licence="CC BY 4.0 as published on Mendeley Data; the films come from the Osteoarthritis Initiative",
    citation=(
        "Chen 2018, Knee Osteoarthritis Severity Grading Dataset (Mendeley Data 56rmx5bjcr v1); Chen et al. 2019 "
        "(doi:10.1016/j.compmedimag.2019.06.002); Osteoarthritis Initiative"
    ),
    parameters={
        **_LETTERS,
        "root": _LETTERS["root"].format(folder="knee"),
        "split": _SPLIT.format(default="drawn"),
        "layout": "curated, or official (kneeKL224) (default curated)",
    },
    descriptions=_DESCRIBED,
)
_WILDS = {
    "size": "images are squashed to size x size pixels (default 64)",
    "root": "folder that holds {name}_v1.0 (default: wilds in VABENCH_DATA)",
    "download": "let the wilds package fetch what is missing (default false)",
    "n_train": "training images, drawn by the data seed (default: all)",
    "n_test": "test images, drawn by the data seed (default: all)",
}


def _wilds(name: str, folder: str, summary: str, factory: str, licence: str, citation: str) -> SuiteInfo:
    return SuiteInfo(
        name=name,
        summary=summary,
        factory=f"suites.wilds_suites:{factory}",
        source="real",
        version="1",
        licence=licence,
        citation=f"{citation}; Koh et al. 2021, WILDS (ICML)",
        parameters={key: text.replace("{name}", folder) for key, text in _WILDS.items()},
        descriptions=f"suites:descriptions/wilds/{name}.yaml",
    )


WATERBIRDS = _wilds(
    "waterbirds",
    "waterbirds",
    "landbirds and waterbirds on land or water backgrounds (WILDS)",
    "Waterbirds",
    "non-commercial research and education",
    "Sagawa et al. 2020, Distributionally robust neural networks (ICLR)",
)
CELEBA = _wilds(
    "celeba",
    "celebA",
    "blond hair or none in portraits; the attribute is whether CelebA calls the person male (WILDS)",
    "CelebA",
    "non-commercial research",
    "Liu et al. 2015, Deep learning face attributes in the wild (ICCV)",
)
CAMELYON17 = _wilds(
    "camelyon17",
    "camelyon17",
    "tumour in lymph node patches from five hospitals, tested on one that is not in training (WILDS)",
    "Camelyon17",
    "CC0 1.0",
    "Bandi et al. 2018, From detection of individual metastases (IEEE TMI)",
)
STAND_IN = SuiteInfo(
    name="stand_in",
    summary="random pixels of a stated size, for timing alone: its accuracies mean nothing",
    factory="suites.stand_in:StandIn",
    source="stand-in",
    version="1",
    licence="own work",
    citation="none",
    parameters={
        "size": "side in pixels (default 64)",
        "n": "training images (default 1024); the other splits hold an eighth",
        "channels": "channels of an image (default 3)",
    },
)
