"""Models of torchvision, timm and transformers, by the names these libraries give them; each is imported when it is needed."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from torch import nn

from incop.errors import InputError, MissingExtra, quoted, unknown
from incop.experiments.models.named import Named, Wanted, place, refuse_arguments

EXTRAS = {"torchvision": "vision", "timm": "vision", "transformers": "transformers", "datasets": "hub"}
PACKAGES = {"torchvision": "torchvision", "timm": "timm", "hf": "transformers"}

# With these a library would read weights, or code, that the plan chooses.
RESERVED = {
    "torchvision": frozenset({"weights", "weights_backbone", "progress"}),
    "timm": frozenset(
        {
            "model_name",
            "pretrained",
            "pretrained_cfg",
            "pretrained_cfg_overlay",
            "pretrained_strict",
            "checkpoint_path",
            "cache_dir",
            "scriptable",
            "exportable",
            "no_jit",
        }
    ),
    "hf": frozenset(
        {
            "auto_map",
            "trust_remote_code",
            "code_revision",
            "attn_implementation",
            "use_kernels",
            "quantization_config",
            "cache_dir",
            "token",
        }
    ),
}
CAUSES = 10  # errors behind an error that are looked at
ATTENTIONS = (None, "eager", "sdpa")  # any other may be a name on a hub whose code would be fetched and run


def imported(package: str, purpose: str) -> ModuleType:
    """Return a library that is no requirement of incop."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        if error.name is not None and error.name.partition(".")[0] == package:
            raise MissingExtra(package, EXTRAS[package], purpose) from None
        raise InputError(f"{package} cannot be imported ({error}): install what it needs for {purpose}") from error
    except (RuntimeError, AttributeError, OSError) as error:  # its compiled part, for another torch
        raise mismatch(error) or _unfit(package, error) from error


def mismatch(error: BaseException) -> InputError | None:
    """Return what is wrong where torchvision's compiled part is for another torch, which timm and transformers fail at, too."""
    seen: BaseException | None = error
    for _ in range(CAUSES):
        if seen is None:
            return None
        if "torchvision::" in str(seen):
            return _unfit("torchvision", seen)
        seen = seen.__cause__ or seen.__context__
    return None


def _unfit(package: str, error: BaseException) -> InputError:
    said = " ".join(str(error).split())[:200]
    return InputError(f"{package} does not match this torch ({said}): install the builds of both that belong together")


def version(named: Named) -> str:
    """Return the library a model comes from, with its version."""
    package = PACKAGES[named.source]
    return f"{package} {getattr(imported(package, 'the model'), '__version__', '')}"


def check(named: Named) -> None:
    """Refuse a name that the library does not have, with the nearest it has; nothing is fetched."""
    said = f"{named.source}:{named.name}"
    library = imported(PACKAGES[named.source], f"the model {said}")
    if named.source == "torchvision":
        models = importlib.import_module("torchvision.models")
        if named.name not in models.list_models(models):  # those of images, not of detection or video
            raise unknown("torchvision model", named.name, _near(named.name, models.list_models(models)))
    elif named.source == "timm":
        plain, _, tag = named.name.partition(".")
        if named.name not in library.list_models() and (
            plain not in library.list_models() or named.name not in library.list_pretrained()
        ):
            whole = (
                library.list_pretrained(f"{plain}.*")
                if tag and plain in library.list_models()
                else library.list_models()
            )
            raise unknown("timm model", named.name, _near(named.name, whole))
    elif place(named.name).is_dir():
        if not (place(named.name) / "config.json").is_file():
            raise InputError(f"the folder {quoted(named.name)} has no config.json: save_pretrained() writes one")
    elif "/" not in named.name:
        known = list(library.CONFIG_MAPPING.keys())
        if named.name not in known:
            raise unknown("transformers model type", named.name, _near(named.name, known))
    elif named.name.startswith((".", "/", "~")):
        raise InputError(f"the model's folder {quoted(named.name)} does not exist: check the path in {said!r}")


def _near(name: str, known: list[str]) -> list[str]:
    """Return the names that are shown: those that begin alike, where a library has hundreds."""
    for length in range(len(name), 1, -1):
        if alike := [one for one in known if one.startswith(name[:length])]:
            return alike
    return known


Maker = Callable[[], nn.Module]


def maker(named: Named, wanted: Wanted, arguments: Mapping[str, Any], *, fetch: bool = False) -> Maker:
    """Return what makes the model.

    Args:
        named: the model.
        wanted: what it must take and give.
        arguments: further arguments of the library's factory, or of the configuration of transformers.
        fetch: with the weights that the library holds ready, where it fits them to these images and classes itself.
    """
    check(named)
    refuse_arguments(f"{named.source}:{named.name}", arguments, RESERVED[named.source])
    if named.source != "hf" and wanted.task != "images":
        raise InputError(f"{named.source}:{named.name} classifies images, and these are {wanted}: take a model of hf:")
    if named.source == "torchvision":
        return _torchvision(named, wanted, arguments)
    if named.source == "timm":
        return _timm(named, wanted, arguments, fetch)
    return _transformers(named, wanted, arguments, fetch)


def _torchvision(named: Named, wanted: Wanted, arguments: Mapping[str, Any]) -> Maker:
    models = importlib.import_module("torchvision.models")
    given: dict[str, Any] = {"num_classes": wanted.classes}
    if "vit_" in named.name:
        if wanted.size[0] != wanted.size[1]:
            raise InputError(f"torchvision:{named.name} takes square images, not {wanted}: make them square")
        given["image_size"] = wanted.size[0]
    if wanted.channels != 3:
        raise InputError(
            f"torchvision:{named.name} takes colour images of 3 channels, and these are {wanted}: take the model of timm, which "
            "builds it for any number of channels"
        )
    return lambda: models.get_model(named.name, weights=None, **{**given, **arguments})


def _timm(named: Named, wanted: Wanted, arguments: Mapping[str, Any], fetch: bool) -> Maker:
    timm = importlib.import_module("timm")
    given: dict[str, Any] = {"num_classes": wanted.classes, "in_chans": wanted.channels}
    usual = timm.get_pretrained_cfg(named.name)
    if usual is not None and usual.fixed_input_size:
        given["img_size"] = wanted.size
    return lambda: timm.create_model(named.name, pretrained=fetch, **{**given, **arguments})


def _transformers(named: Named, wanted: Wanted, arguments: Mapping[str, Any], fetch: bool) -> Maker:
    transformers = importlib.import_module("transformers")
    folder = place(named.name)
    said = str(folder) if folder.is_dir() else named.name
    sizes: dict[str, Any] = {} if wanted.task == "language" else {"num_labels": wanted.classes}
    if wanted.task == "images":
        side = wanted.size[0] if wanted.size[0] == wanted.size[1] else wanted.size
        sizes |= {"num_channels": wanted.channels, "image_size": side}
    if not folder.is_dir() and "/" not in named.name:
        known = vars(transformers.AutoConfig.for_model(named.name))
        config = transformers.AutoConfig.for_model(
            named.name, **{key: v for key, v in sizes.items() if key in known or key == "num_labels"} | dict(arguments)
        )
    else:
        config = _config(transformers, said)
        for key, value in {**{k: v for k, v in sizes.items() if hasattr(config, k)}, **arguments}.items():
            if not hasattr(config, key):
                raise unknown(f"argument of hf:{named.name}", key, vars(config))
            setattr(config, key, value)
    if getattr(config, "_attn_implementation", None) not in ATTENTIONS or getattr(config, "quantization_config", None):
        raise InputError(
            f"the configuration of hf:{named.name} asks for attention kernels of its own or for quantised weights, which are "
            "not pruned here: take them out of its config.json"
        )
    auto = {
        "images": transformers.AutoModelForImageClassification,
        "text": transformers.AutoModelForSequenceClassification,
        "language": transformers.AutoModelForCausalLM,
    }[wanted.task]
    if not fetch:
        return lambda: auto.from_config(config, trust_remote_code=False)
    return lambda: auto.from_pretrained(
        said, config=config, trust_remote_code=False, use_safetensors=True, ignore_mismatched_sizes=True
    )


def _config(transformers: Any, name: str) -> Any:
    try:
        return transformers.AutoConfig.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        said = " ".join(str(error).split())[:300]
        raise InputError(
            f"the configuration of hf:{name} cannot be had ({said}): give a local folder with config.json"
        ) from error


def pretrained(named: Named, model: nn.Module) -> Mapping[str, Any]:
    """Return torchvision's own weights of a model."""
    models = importlib.import_module("torchvision.models")
    try:
        weights = models.get_model_weights(named.name).DEFAULT
        found: Mapping[str, Any] = weights.get_state_dict(progress=False, check_hash=True)
        return found
    except (OSError, AttributeError, ValueError, RuntimeError) as error:
        raise no_download(f"torchvision:{named.name}", error) from error


def no_download(name: str, error: Exception) -> InputError:
    """Return the error for weights that a library could not fetch."""
    said = " ".join(str(error).split())[:200]
    return InputError(
        f"the pretrained weights of {name} cannot be had ({type(error).__name__}: {said}): connect to the network once so that the "
        "library can fetch them, or give a local safetensors file with --weights"
    )
