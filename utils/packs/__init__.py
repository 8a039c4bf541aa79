"""Feature packs: the frozen features of a data set, with its labels, in one safetensors file."""

from utils.packs.pack import Pack, read_pack, write_pack

__all__ = ["Pack", "read_pack", "write_pack"]
