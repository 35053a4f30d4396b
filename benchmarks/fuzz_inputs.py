"""Damage of files for `fuzz`: bytes, numbers, texts, and values of JSON, headers and tables."""

import gzip
import io
import json
import random
import struct
import zipfile
import zlib
from collections.abc import Callable

Damage = Callable[[bytes, random.Random], bytes]

EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1)
WORDS = (
  *(b"null", b"true", b"NaN", b"-Infinity", b"1e999", b"-1", b"9" * 5000, b"2.0", b"{}", b"[]"),
  *(b'""', b"\\ud800", b"\\u0000", b"\xed\xa0\x80", b"\xff\xfe", b"\xef\xbb\xbf", b"\x00", b"\r"),
  *("\u2028".encode(), "\u202e".encode(), "🛍".encode(), "é".encode("latin-1"), b'"', b"\n", b"'"),
  *(b"\x1b]0;title\x07", b"../../../x", b"/etc/passwd", b"C:\\", b"__import__('os')", b"=1+1"),
  *(b"[" * 2000, b'{"a":' * 2000, b"(" * 2000, b"a" * 5000),
)
VALUES = (
  *(None, True, False, 0, 1, -1, 2**31, 2**63, 2**64, 10**40, 10**400, 1e308, float("nan")),
  *(float("inf"), "", "x", "\x00", "\ud800", "🛍", "../../../x", "/etc/passwd", "9" * 300, "1e5"),
  *([], [[]], [1, "a", None], {}, {"": {}}, ["x"] * 200, "a" * 5000, "a\nb", "\x1b[2J"),
)


def damage_bytes(content: bytes, draw: random.Random) -> bytes:
  """Up to sixteen changes: bits, bytes, numbers of a length field, words, parts that are cut out,
  repeated or moved, and the end."""
  x = bytearray(content)
  for _ in range(draw.choice((1, 1, 1, 2, 4, 16))):
    at, other = draw.randrange(len(x) + 1), draw.randrange(len(x) + 1)
    match draw.randrange(9):
      case 0 if at < len(x):
        x[at] ^= 1 << draw.randrange(8)
      case 1 if at < len(x):
        x[at] = draw.randrange(256)
      case 2:
        size = draw.choice((1, 2, 4, 8))
        number = (draw.choice(EXTREMES) + draw.choice((-1, 0, 0, 1))) % 2 ** (8 * size)
        x[at : at + size] = number.to_bytes(size, draw.choice(("little", "big")))
      case 3:
        x[at:at] = draw.choice(WORDS)
      case 4:
        word = draw.choice(WORDS)
        x[at : at + len(word)] = word
      case 5:
        del x[at : at + draw.choice((1, 1, 2, 4, 30))]
      case 6:
        x[at:at] = x[other : other + draw.choice((1, 4, 20, 60))]
      case 7:
        del x[at:]
      case _:
        x[at : at + 8] = x[other : other + 8]
  return bytes(x)


def damage_value(value: object, draw: random.Random) -> object:
  """A copy of a JSON value in which one place holds something else, lacks, or is very deep."""
  if isinstance(value, dict) and value and draw.random() < 0.8:
    key = draw.choice(list(value))
    out = dict(value)
    match draw.randrange(8):
      case 0:
        del out[key]
      case 1:
        out[draw.choice(("", "x", "\ud800", "a" * 300, key + "s", key.upper()))] = out.pop(key)
      case 2:
        out[draw.choice(list(out))] = out[draw.choice(list(out))]
      case _:
        out[key] = damage_value(out[key], draw)
    return out
  if isinstance(value, list) and value and draw.random() < 0.8:
    at = draw.randrange(len(value))
    kept = value[:at] + value[at + 1 :]
    changed = value[:at] + [damage_value(value[at], draw)] + value[at + 1 :]
    return draw.choice((kept, changed, changed, changed, value + [value[at]], value[::-1]))
  if draw.random() < 0.05:
    deep: object = value
    for _ in range(draw.choice((90, 110, 300))):
      deep = [deep] if draw.random() < 0.5 else {"a": deep}
    return deep
  return draw.choice(VALUES)


def damage_json(content: bytes, draw: random.Random) -> bytes:
  """The JSON value with other values in it, or its bytes damaged."""
  if draw.random() < 0.3:
    return damage_bytes(content, draw)
  if draw.random() < 0.01:
    depth = draw.choice((1000, 100_000))
    return draw.choice((b"[" * depth, b"[" * depth + b"]" * depth, b'{"a":' * depth))
  value = json.loads(content)
  for _ in range(draw.choice((1, 1, 2, 3))):
    value = damage_value(value, draw)
  return json.dumps(value, ensure_ascii=draw.random() < 0.8).encode(errors="surrogatepass")


def damage_lines(content: bytes, draw: random.Random) -> bytes:
  """Lines of JSON of which one is damaged, missing or repeated."""
  if draw.random() < 0.3:
    return damage_bytes(content, draw)
  lines = content.splitlines()
  at = draw.randrange(len(lines))
  match draw.randrange(6):
    case 0:
      del lines[at]
    case 1:
      lines.insert(at, draw.choice(lines))
    case _:
      lines[at] = damage_json(lines[at], draw)
  return draw.choice((b"\n", b"\n", b"\n", b"\r\n")).join(lines) + b"\n"


def damage_npy(content: bytes, draw: random.Random) -> bytes:
  """A .npy file whose header says something else, or with damaged bytes."""
  if draw.random() < 0.4:
    return damage_bytes(content, draw)
  length = int.from_bytes(content[8:10], "little")
  header, numbers = content[10 : 10 + length], content[10 + length :]
  sizes = (0, 1, 3, -1, True, 2.0, None, 2**31, 2**62, 2**63, 10**30)
  shape = tuple(draw.choice(sizes) for _ in range(draw.randrange(4)))
  kinds = "<f4 >f8 <f2 <i8 |b1 <U5 |S3 |O |V4 <M8[s] <c8 |V0 x".split()
  if draw.random() < 0.7:
    descr = draw.choice((*kinds, [("a", "<f4")], ["a"], None, "<f" + "9" * 30))
    fields = {"descr": descr, "fortran_order": draw.choice((False, True, 0, "")), "shape": shape}
    if draw.random() < 0.2:
      fields[draw.choice(("more", "descr", "shape"))] = draw.choice(VALUES[:12])
    header = repr(fields).encode() + b"\n"
  else:
    header = damage_bytes(header, draw)
  if draw.random() < 0.3:
    numbers = numbers * draw.choice((0, 2))
  version = draw.choice((1, 1, 2, 2, 3))
  size = draw.choice((len(header), len(header), len(header), draw.choice(EXTREMES)))
  width = 2 if version == 1 else 4
  prefix = (size % 256**width).to_bytes(width, "little")
  return b"\x93NUMPY" + bytes([version, 0]) + prefix + header + numbers


def damage_safetensors(content: bytes, draw: random.Random) -> bytes:
  """A .safetensors file whose header says something else, or with damaged bytes."""
  if draw.random() < 0.3:
    return damage_bytes(content, draw)
  length = int.from_bytes(content[:8], "little")
  header, numbers = json.loads(content[8 : 8 + length]), content[8 + length :]
  tensors = [key for key in header if key != "__metadata__"]
  if tensors and draw.random() < 0.6:
    about = header[draw.choice(tensors)]
    types = "F4 F8_E4M3 F8_E8M0 F6_E2M3 C64 BOOL I8 U64 BF16 F16 F99".split()
    match draw.randrange(3):
      case 0:
        about["dtype"] = draw.choice(types)
      case 1:
        sizes = (0, 1, 3, 12, 2**31, 2**62, 2**63, 2**64, -1, True)
        about["shape"] = [draw.choice(sizes) for _ in range(draw.randrange(4))]
      case _:
        about["data_offsets"] = [draw.choice((0, 1, 48, 2**63)) for _ in range(2)]
  else:
    header = damage_value(header, draw)
  text = json.dumps(header).encode()
  size = draw.choice((len(text), len(text), len(text), draw.choice(EXTREMES)))
  return struct.pack("<Q", size) + text + numbers


def damage_zip(content: bytes, draw: random.Random) -> bytes:
  """A zip file with a damaged member and the right checksums, or with damaged bytes."""
  if not content.startswith(b"PK") or draw.random() < 0.3:
    return damage_bytes(content, draw)
  with zipfile.ZipFile(io.BytesIO(content)) as archive:
    members = {name: archive.read(name) for name in archive.namelist()}
  name = draw.choice(sorted(members))
  members[name] = damage_bytes(members[name], draw)
  if draw.random() < 0.1:
    members[draw.choice(("../../x", "/x", "a" * 300, "other/data.pkl"))] = members.pop(name)
  out = io.BytesIO()
  with zipfile.ZipFile(out, "w", draw.choice((zipfile.ZIP_STORED,) * 4 + (8,))) as archive:
    for name, member in members.items():
      archive.writestr(zipfile.ZipInfo(name), member)
  return out.getvalue()


def compressed(inner: Damage, compress: Callable[[bytes], bytes]) -> Damage:
  """Damage of what is compressed, of the compressed file, or of both."""
  small = {gzip.compress: lambda x: gzip.compress(x, 1, mtime=0)}.get(compress, compress)

  def damage(content: bytes, draw: random.Random) -> bytes:
    if draw.random() < 0.6:
      content = inner(content, draw)
    out = small(content)
    if draw.random() < 0.5:
      out = damage_bytes(out, draw)
    elif draw.random() < 0.1:
      out += draw.choice((b"\0", small(content), b"more", zlib.compress(content)))
    return out

  return damage
