"""Prepares vLLM 0.26 for a machine that has a GPU, torch and no network: one archive, small enough to be carried.

    python benchmarks/gpu/offline.py FOLDER [--whole]

Fetches the wheels that such a machine lacks (offline.txt), and vLLM's, and packs them into FOLDER/vllm.tar.xz: of vLLM
its Python part and two libraries, reduced to the code of one architecture (sm_90: H100, H200, GH200), about 48 MiB in
all. With --whole vLLM's larger library stays as it is, 54 MiB more: for a driver that does not take the reduced one.

There, Python 3.12 on x86-64 with torch 2.11 for CUDA 13 and the usual packages around it:

    tar xJf vllm.tar.xz -C /tmp
    export PYTHONPATH=/tmp/vllm-offline/site VLLM_CACHE_ROOT=/tmp/vllm-offline/cache

Left out: kernels for quantised models and mixtures of experts, FlashAttention 2, flashinfer, deep_gemm. What remains
serves dense models in bf16 (FlashAttention 3) and fp32 (Triton). It takes some minutes; what was fetched stays in
FOLDER and is not fetched again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import struct
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

VLLM = "vllm==0.26.0"
REQUIREMENTS = Path(__file__).with_name("offline.txt")
PYTHON = "3.12"
GLIBC = (34, 31, 28, 27, 24, 17, 12, 5)  # 2.N: wheels for any of these run there; the first are preferred
PLATFORMS = (
    *(f"manylinux_2_{minor}_x86_64" for minor in GLIBC),
    *(f"manylinux{year}_x86_64" for year in (1, 2010, 2014)),
)
ROOT = "vllm-offline"  # the archive's only folder
ARCHIVE = "vllm.tar.xz"
SM = 90
COMMON, FLASH = "vllm/_C_stable_libtorch.abi3.so", "vllm/vllm_flash_attn/_vllm_fa3_C.abi3.so"
NOT_NEEDED = (".so", "/include/", "vllm/vllm-rs", "swagger-ui")  # of vLLM's wheel, by parts of names
NEVER_READ = ("pycountry/locales", "mistral_common/data")

# What vLLM finds out of a model's class in a process of its own, unless it lies in its cache: 10 s for each at a start.
DECODERS = (("qwen2", "Qwen2ForCausalLM"), ("llama", "LlamaForCausalLM"))
DENSE_DECODER = {
    "is_text_generation_model": True,
    "is_pooling_model": False,
    "attn_type": "decoder",
    "default_seq_pooling_type": "LAST",
    "default_tok_pooling_type": "ALL",
    "score_type": "bi-encoder",
    "supports_multimodal": False,
    "supports_multimodal_raw_input_only": False,
    "requires_raw_input_tokens": False,
    "supports_multimodal_encoder_tp_data": False,
    "supports_pp": True,
    "has_inner_state": False,
    "is_attention_free": False,
    "is_hybrid": False,
    "has_noops": False,
    "supports_mamba_prefix_caching": False,
    "supports_transcription": False,
    "supports_transcription_only": False,
}

# A fat binary: a header, then entries, each a header of its own and code for one architecture.
MAGIC = struct.pack("<I", 0xBA55ED50)
HEADER = struct.Struct("<4sHHQ")  # magic, version, bytes of this header, bytes of all entries
ENTRY = struct.Struct("<HHIQ")  # kind, version, bytes of this header, bytes of the code
SM_AT = 28  # of an entry's header, four bytes
KINDS = (1, 2)  # PTX, machine code


class Code(NamedTuple):
    """Code for one architecture: where it lies in the library."""

    sm: int
    start: int
    end: int


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--whole", action="store_true", help="vLLM's larger library with the code of all architectures")
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    tree = folder / ROOT
    shutil.rmtree(tree, ignore_errors=True)  # what an earlier call left is not carried
    fetch(folder / "wheels", "--requirement", str(REQUIREMENTS))
    fetch(folder / "vllm", VLLM)
    install(folder / "wheels", tree / "site")
    unpack(next((folder / "vllm").glob("vllm-*.whl")), tree / "site", whole=arguments.whole)
    for name in NEVER_READ:
        shutil.rmtree(tree / "site" / name, ignore_errors=True)
    describe_models(tree)
    archive = folder / ARCHIVE
    pack(tree, archive)
    print(f"{archive}: {archive.stat().st_size / 2**20:.1f} MiB")
    return 0


def fetch(target: Path, *what: str) -> None:
    """Wheels for the other machine; those that lie in the folder are not fetched again."""
    target.mkdir(parents=True, exist_ok=True)
    found = ["--find-links", str(target)]
    pip("download", "--no-deps", *for_there(), *found, "--dest", str(target), *what)


def install(wheels: Path, site: Path) -> None:
    places = ["--find-links", str(wheels), "--target", str(site)]
    pip("install", "--no-deps", "--no-index", "--no-compile", *for_there(), *places, "--requirement", str(REQUIREMENTS))


def for_there() -> list[str]:
    platforms = [word for name in PLATFORMS for word in ("--platform", name)]
    return ["--only-binary=:all:", "--python-version", PYTHON, "--implementation", "cp", *platforms]


def pip(command: str, *arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", command, "-q", *arguments], check=True)


def unpack(wheel: Path, site: Path, *, whole: bool) -> None:
    """vLLM's Python files, and the two libraries that dense models need."""
    with zipfile.ZipFile(wheel) as content:
        names = [name for name in content.namelist() if not any(part in name for part in NOT_NEEDED)]
        content.extractall(site, names)
        for name in (COMMON, FLASH):
            library = bytearray(content.read(name))
            if not (whole and name == COMMON):
                kept, blanked = keep_only(SM, library)
                print(f"{name}: {kept / 2**20:.0f} MiB for sm_{SM}, {blanked / 2**20:.0f} MiB of others blanked")
            path = site / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(library)


def keep_only(sm: int, library: bytearray) -> tuple[int, int]:
    """Zero the code of all other architectures. Bytes of code that stay, and that do not.

    Nothing moves, so the library stays one; zeros take no room in an archive. Raises ValueError if no code is left.
    """
    kept = blanked = 0
    for code in list(codes(library)):
        if code.sm == sm:
            kept += code.end - code.start
        else:
            library[code.start : code.end] = bytes(code.end - code.start)
            blanked += code.end - code.start
    if not kept:
        raise ValueError(f"the library has no code for sm_{sm}")
    return kept, blanked


def codes(library: bytes | bytearray) -> Iterator[Code]:
    """All code for GPUs in a library."""
    at = library.find(MAGIC)
    while at >= 0:
        end = at + 1
        if at + HEADER.size <= len(library):
            _, version, header_bytes, entries_bytes = HEADER.unpack_from(library, at)
            behind = at + header_bytes + entries_bytes
            if (version, header_bytes) == (1, HEADER.size) and behind <= len(library):
                yield from _entries(library, at + header_bytes, behind)
                end = behind
        at = library.find(MAGIC, end)


def _entries(library: bytes | bytearray, at: int, end: int) -> Iterator[Code]:
    while at + SM_AT + 4 <= end:
        kind, _, header_bytes, code_bytes = ENTRY.unpack_from(library, at)
        start = at + header_bytes
        if kind not in KINDS or header_bytes < SM_AT + 4 or start + code_bytes > end:
            return  # padding, or something that nobody here knows: it stays as it is
        (sm,) = struct.unpack_from("<I", library, at + SM_AT)
        yield Code(sm, start, start + code_bytes)
        at = start + code_bytes


def describe_models(tree: Path) -> None:
    """Write what vLLM would find out of the models' classes, into its cache."""
    folder = tree / "cache" / "modelinfos"
    folder.mkdir(parents=True)
    for module, architecture in DECODERS:
        source = tree / "site" / "vllm" / "model_executor" / "models" / f"{module}.py"
        digest = hashlib.md5(source.name.encode() + b"\0" + source.read_bytes() + b"\0", usedforsecurity=False)
        content = {"hash": digest.hexdigest(), "modelinfo": {"architecture": architecture, **DENSE_DECODER}}
        (folder / f"vllm-model_executor-models-{module}-{architecture}.json").write_text(json.dumps(content))


def pack(tree: Path, archive: Path) -> None:
    order = ("--sort=name", "--owner=0", "--group=0", "--mtime=@0")
    compress = ("--use-compress-program", "xz -6 -T0")
    subprocess.run(["tar", "-C", str(tree.parent), *order, *compress, "-cf", str(archive), tree.name], check=True)


if __name__ == "__main__":
    sys.exit(main())
