#!/usr/bin/env python3
"""Checks every #include of the library against the layer table in cmake/LoraLayers.cmake.

Usage: layers_test.py SOURCE_DIR

A layer may include itself and what its LORA_USES_<layer> names. Public headers include neither private
headers nor the private libraries, and layers without LibTorch include none of it. Programs (cli) and the
umbrella header lora/lora.h may include everything of ours. Prints the number of files checked; lists
violations and exits with 1 when there are any.
"""
import pathlib
import re
import sys

PRIVATE_LIBRARIES = ("fmt/", "spdlog/", "nlohmann/", "yaml-cpp/")
TORCH = ("torch/", "ATen/", "c10/", "caffe2/")
SUFFIXES = {".h", ".hpp", ".cpp", ".cu", ".cuh"}
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', re.MULTILINE)
SETTING = re.compile(r"^set\((LORA_LAYERS|LORA_TORCH_FREE_LAYERS|LORA_USES_\w+)\s+([^)]*)\)", re.MULTILINE)


def read_table(source_dir):
    """The layers' uses and the set of layers without LibTorch, as CMake has them."""
    text = (source_dir / "cmake" / "LoraLayers.cmake").read_text()
    settings = {name: value.replace('"', "").split() for name, value in SETTING.findall(text)}
    uses = {name.removeprefix("LORA_USES_"): set(value) for name, value in settings.items()
            if name.startswith("LORA_USES_")}
    torch_free = set(settings.get("LORA_TORCH_FREE_LAYERS", []))
    missing = (set(settings.get("LORA_LAYERS", [])) | torch_free) - uses.keys()
    if not uses or missing:
        sys.exit(f"cmake/LoraLayers.cmake: no LORA_USES_ line for {sorted(missing) or 'any layer'}")
    return uses, torch_free


def layer_of(parts, uses):
    """Layer of a path below src/ or include/lora/: its folder; the model for models/<model>/ and models/<model>.h."""
    if len(parts) < 2:
        return None
    model = pathlib.PurePosixPath(parts[1]).stem
    return model if parts[0] == "models" and (len(parts) > 2 or model in uses) else parts[0]


def target_layer(name, public, uses):
    """Layer of an included file of ours, None for one of the top level such as lora/lora.h."""
    parts = pathlib.PurePosixPath(name).parts
    return layer_of(parts[1:] if public else parts, uses)


def check_file(source_dir, path, uses, torch_free):
    """Messages for one file's includes that break the rules."""
    relative = path.relative_to(source_dir)
    is_public = relative.parts[0] == "include"
    layer = layer_of(relative.parts[2:] if is_public else relative.parts[1:], uses)
    # Programs, the umbrella header and the precompiled header stand above the layers.
    is_above = layer is None or layer == "cli"
    problems = []
    if not is_above and layer not in uses:
        return [f"{relative}: the layer {layer} is not in cmake/LoraLayers.cmake"]
    text = path.read_text(errors="replace")
    for match in INCLUDE.finditer(text):
        bracket, name = match.groups()
        line = text.count("\n", 0, match.start(1)) + 1
        where = f"{relative}:{line}: {name}"
        is_ours_public = name.startswith("lora/")
        if is_ours_public and not (source_dir / "include" / name).is_file():
            problems.append(f"{where} does not exist")
        is_private = not is_ours_public and ((source_dir / "src" / name).is_file() or bracket == '"')
        if is_public and is_private:
            problems.append(f"{where} is private, and this header is public")
        if is_public and name.startswith(PRIVATE_LIBRARIES):
            problems.append(f"{where} belongs to a private library, and this header is public")
        if layer in torch_free and name.startswith(TORCH):
            problems.append(f"{where} is LibTorch, and {layer} does without")
        if is_above or not (is_ours_public or is_private):
            continue
        target = target_layer(name, is_ours_public, uses)
        if target is None:
            problems.append(f"{where} is no file of a layer")
        elif target != layer and target not in uses[layer]:
            problems.append(f"{where} is of {target}, which {layer} may not use")
    return problems


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    source_dir = pathlib.Path(sys.argv[1]).resolve()
    uses, torch_free = read_table(source_dir)
    files = sorted(path for folder in ("src", "include/lora")
                   for path in (source_dir / folder).rglob("*") if path.suffix in SUFFIXES)
    problems = [problem for path in files for problem in check_file(source_dir, path, uses, torch_free)]
    print(f"checked the includes of {len(files)} files against {len(uses)} layers")
    for problem in problems:
        print(f"error: {problem}")
    return 1 if problems or not files else 0


if __name__ == "__main__":
    sys.exit(main())
