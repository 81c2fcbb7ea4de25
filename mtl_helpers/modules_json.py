"""A sentence-transformers folder, read by its modules.json and written: what can't be honoured is refused by name.

modules.json lists what a text passes through, in order; most modules have a folder with settings and weights
(https://sbert.net). That library itself, slow to import, is used for the modules that are rare.
"""

import copy
from pathlib import Path

import torch
from torch import nn

from .folders import read_json, write_json

POOLINGS = {"mean": "mean", "cls": "cls", "max": "max", "weightedmean": "weighted"}  # their name: ours
STAGES = {"Transformer": 0, "WeightedLayerPooling": 1, "Pooling": 2, "Dense": 3, "LayerNorm": 3, "Normalize": 4}
HARMLESS = {  # settings that say what is done here anyway
    "include_prompt": (True,),
    "model_type": ("SentenceTransformer",),
    "module_input_name": ("sentence_embedding",),
    "module_output_name": ("sentence_embedding",),
    "transformer_task": ("feature-extraction",),
}


def read_modules(directory: Path) -> tuple[Path, dict]:
    """Read what a folder says beside the weights of its transformer.

    Returns:
        The folder of the transformer, and arguments of `SentenceEncoder`; among them `lowercase`, true if texts are
        to be lowercased. A folder without modules.json is a Hugging Face model, and says at most `max_length`.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, or a module or setting can't be honoured; names it and says what to do.
    """
    path, modules = directory / "modules.json", []
    if not path.is_file():
        return directory, _transformer(directory)
    for entry in read_json(path, list):
        if not isinstance(entry, dict) or not {"type", "path"} <= entry.keys():
            raise ValueError(f"{path}: {entry!r} is no module with a type and a path; fetch or save the folder again")
        library, _, name = str(entry["type"]).rpartition(".")
        if name not in {*STAGES, "Dropout"} or not library.startswith("sentence_transformers.") or entry.get("kwargs"):
            raise _refusal(path, f"the module {entry['type']}")
        modules.append((name, str(entry["path"])))
    names = [name for name, _ in modules if name != "Dropout"]
    stages = [STAGES[name] for name in names]
    if stages != sorted(stages) or (stages.count(0), stages.count(2)) != (1, 1) or stages.count(1) > 1:
        raise _refusal(path, f"the order {', '.join(names) or 'of no modules'} (expected {', '.join(STAGES)})")
    settings, projection = {"normalize": "Normalize" in names}, []
    _check_prompt(directory / "config_sentence_transformers.json")
    for name, folder in modules:
        if name == "Transformer":
            settings |= _transformer(directory / folder)
        elif name == "Pooling":
            settings["pooling"] = _pooling(directory / folder / "config.json", "layers" in settings)
        elif name == "WeightedLayerPooling":
            settings["layers"] = len(_load_module(name, directory, folder))
        else:
            projection += _load_module(name, directory, folder)
    return directory / modules[0][1], settings | {"projection": nn.Sequential(*projection) if projection else None}


def _refusal(path: Path, what: str) -> ValueError:
    remedy = "read it with sentence_transformers.SentenceTransformer, or take out of the file what you can do without"
    return ValueError(f"{path}: {what} can't be honoured here, and leaving it out would change vectors; {remedy}")


def _settings(path: Path, *names: str) -> dict:
    """Settings from a file, if it is there. One that is neither among `names` nor empty nor harmless is refused."""
    settings = read_json(path) if path.is_file() else {}
    for name, value in settings.items():
        if name not in names and value not in (None, False, "", [], {}) and value not in HARMLESS.get(name, ()):
            raise _refusal(path, f"{name} = {value!r}")
    return settings


def _check_prompt(path: Path) -> None:
    names = "__version__", "prompts", "default_prompt_name", "similarity_fn_name", "requirements"
    settings = _settings(path, *names)
    prompt = (settings.get("prompts") or {}).get(settings.get("default_prompt_name"))
    if prompt:
        raise _refusal(path, f"default_prompt_name, which puts {prompt!r} before each text,")


def _transformer(folder: Path) -> dict:
    path = next(iter([*folder.glob("sentence_bert_config.json"), *folder.glob("sentence_*_config.json")]), folder / "-")
    settings = _settings(
        path, "max_seq_length", "do_lower_case", "modality_config", "unpad_inputs", "module_output_name"
    )
    text = (settings.get("modality_config") or {}).get("text")
    if text and text != {"method": "forward", "method_output_name": "last_hidden_state"}:
        raise _refusal(path, f"modality_config = {text!r} for texts")
    return {"max_length": settings.get("max_seq_length"), "lowercase": bool(settings.get("do_lower_case"))}


def _pooling(path: Path, last_layers: bool) -> str:
    """Our name of a pooling. Older folders have a key for each, such as pooling_mode_mean_tokens: true."""
    flags = [name for name in read_json(path) if name.startswith("pooling_mode")]
    settings = _settings(path, "embedding_dimension", "word_embedding_dimension", *flags)
    old = [name[len("pooling_mode_") :] for name in flags if settings[name] is True]
    old = [name.removesuffix("_tokens").removesuffix("_token") for name in old]
    modes = settings.get("pooling_mode") or old
    modes = [modes] if isinstance(modes, str) else list(modes)
    if len(modes) != 1 or modes[0] not in (("mean",) if last_layers else POOLINGS):
        raise _refusal(
            path, f"the pooling {' + '.join(map(str, modes)) or 'of no mode'} (expected one of {', '.join(POOLINGS)})"
        )
    return "last_layers" if last_layers else POOLINGS[modes[0]]


def _load_module(name: str, directory: Path, folder: str) -> list:
    """What a projection takes of a module; of a WeightedLayerPooling its weights, which must be equal."""
    from sentence_transformers.sentence_transformer import modules as theirs

    path, sizes = directory / folder / "config.json", ("dimension", "embedding_dimension", "word_embedding_dimension")
    names = "in_features", "out_features", "bias", "activation_function", "dropout", "layer_start", "num_hidden_layers"
    settings = _settings(path, *sizes, *names)
    try:
        module = getattr(theirs, name).load(str(directory), subfolder=folder, local_files_only=True)
    except Exception as error:
        raise ValueError(f"{path.parent}: damaged, or not a {name} ({error}); fetch or save it again") from error
    match name:
        case "Dense":
            activation = settings.get("activation_function", "torch.")
            if not activation.startswith("torch.") or list(module.activation_function.parameters()):
                raise _refusal(path, f"the activation {activation}")
            return [module.linear, module.activation_function]
        case "LayerNorm":
            return [module.norm]
        case "Dropout":
            return [nn.Dropout(module.dropout)]
        case "WeightedLayerPooling":
            if not torch.allclose(module.layer_weights, module.layer_weights[0]):
                raise _refusal(path.parent, "a WeightedLayerPooling whose weights differ")
            return list(module.layer_weights)
    return []


def write_modules(folder: Path, encoder: nn.Module) -> None:
    """Write modules.json and the modules behind the transformer of a SentenceEncoder, whose files lie in `folder`."""
    from sentence_transformers.sentence_transformer import modules as theirs

    width, depth = encoder.width, encoder.traits.depth
    mode = {ours: name for name, ours in POOLINGS.items()}.get(encoder.pooling, "mean")
    modules = [theirs.Pooling(width, mode)]
    if encoder.pooling == "last_layers":
        modules.insert(0, theirs.WeightedLayerPooling(width, depth, layer_start=depth + 1 - encoder.layers))
        config = read_json(folder / "config.json")
        write_json(folder / "config.json", {**config, "output_hidden_states": True})  # which that module needs
    for module in encoder.projection or ():
        if isinstance(module, nn.Linear):
            modules.append(theirs.Dense(module.in_features, module.out_features, module.bias is not None, None))
            modules[-1].linear = module
        elif isinstance(module, nn.LayerNorm):
            modules.append(theirs.LayerNorm(len(module.weight)))
            modules[-1].norm = module
        elif isinstance(module, nn.Dropout):
            modules.append(theirs.Dropout(module.p))
        else:
            modules[-1].activation_function = module
    modules += [theirs.Normalize()] * encoder.normalize
    listed = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]
    for i, module in enumerate(modules, start=1):
        name = type(module).__name__
        (folder / f"{i}_{name}").mkdir()
        module.save(str(folder / f"{i}_{name}"))
        listed.append({"idx": i, "name": str(i), "path": f"{i}_{name}", "type": f"sentence_transformers.models.{name}"})
    write_json(folder / "modules.json", listed)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": encoder.max_length, "do_lower_case": False})
    write_json(folder / "config_sentence_transformers.json", {"prompts": {}, "default_prompt_name": None})
    check_projection(folder, encoder)


def check_projection(folder: Path, encoder: nn.Module) -> None:
    """Raise ValueError if the projection read from a folder is not that of the encoder."""
    if encoder.projection is None:
        return
    numbers = torch.randn(8, encoder.width, generator=torch.Generator().manual_seed(0))
    read, own = read_modules(folder)[1]["projection"], copy.deepcopy(encoder.projection).cpu().float()
    if read is None or not torch.allclose(read.eval()(numbers), own.eval()(numbers), rtol=1e-4, atol=1e-5):
        what = "can't be written: expected Linear (with at most one activation behind it, without settings), LayerNorm"
        names = ", ".join(type(module).__name__ for module in encoder.projection)
        raise ValueError(f"the projection ({names}) {what} and Dropout, in any order")
