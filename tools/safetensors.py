"""Files of tensors as Hugging Face keeps them: 8 bytes that say how long the header is; the header, JSON with dtype,
shape and byte range of each tensor; their bytes. A file is mapped, not read: a tensor takes memory when it is used."""

import json
import math
from pathlib import Path

import torch

from data.files import UserError, parse_json, replacing

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
DTYPES |= {"I64": torch.int64, "I32": torch.int32, "U8": torch.uint8, "BOOL": torch.bool}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """UserError unless every tensor lies in the file and is as long as its shape says."""
    size = path.stat().st_size
    start, header = size + 1, {}
    if size >= 8:
        data = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)
        start = 8 + int.from_bytes(bytes(data[:8].tolist()), "little")
    if start > size:
        what = f"a file of {size} bytes, and its header ends at byte {start}" if size >= 8 else f"{size} bytes"
        raise UserError(f"{path}: no whole safetensors file ({what}); fetch it again")
    try:
        header = parse_json(bytes(data[8:start].numpy()))
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        return {name: _tensor(data[start:], entry, name, start) for name, entry in entries.items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: its header is not that of a safetensors file ({error}); fetch it again") from None


def _tensor(data: torch.Tensor, entry: dict, name: str, start: int) -> torch.Tensor:
    """The tensor of a header's entry; ValueError where the entry does not fit the bytes behind it."""
    shape, (begin, end) = entry["shape"], entry["data_offsets"]
    if entry["dtype"] not in DTYPES:
        raise ValueError(f"{name} is of {entry['dtype']}, which is not read: {', '.join(DTYPES)} are")
    dtype = DTYPES[entry["dtype"]]
    numbers = all(type(n) is int and n >= 0 for n in (*shape, begin, end))
    if not numbers or not begin <= end <= len(data) or end - begin != math.prod(shape) * dtype.itemsize:
        lies = f"is said to be {shape} of {entry['dtype']} at bytes {begin} to {end}, where there are {len(data)}"
        raise ValueError(f"{name} {lies}")
    piece = data[begin:end]
    piece = piece.clone() if (start + begin) % dtype.itemsize else piece  # a view must begin at a whole number
    return piece.view(dtype).view(shape)


def write_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # so that the tensors begin at a whole number of any dtype
    with replacing(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            file.write(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
