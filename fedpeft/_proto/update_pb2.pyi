from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Coder(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CODER_UNSPECIFIED: _ClassVar[Coder]
    CODER_RAW: _ClassVar[Coder]
    CODER_BITS: _ClassVar[Coder]
    CODER_RANS: _ClassVar[Coder]
    CODER_RANS_CLASSES: _ClassVar[Coder]
    CODER_RICE: _ClassVar[Coder]
CODER_UNSPECIFIED: Coder
CODER_RAW: Coder
CODER_BITS: Coder
CODER_RANS: Coder
CODER_RANS_CLASSES: Coder
CODER_RICE: Coder

class Payload(_message.Message):
    __slots__ = ("checksum", "content")
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    checksum: bytes
    content: bytes
    def __init__(self, checksum: _Optional[bytes] = ..., content: _Optional[bytes] = ...) -> None: ...

class Content(_message.Message):
    __slots__ = ("header", "parts")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    header: Header
    parts: _containers.RepeatedCompositeFieldContainer[Part]
    def __init__(self, header: _Optional[_Union[Header, _Mapping]] = ..., parts: _Optional[_Iterable[_Union[Part, _Mapping]]] = ...) -> None: ...

class Header(_message.Message):
    __slots__ = ("version", "fingerprint", "run", "round", "client", "codec", "numel")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    NUMEL_FIELD_NUMBER: _ClassVar[int]
    version: int
    fingerprint: bytes
    run: bytes
    round: int
    client: int
    codec: str
    numel: int
    def __init__(self, version: _Optional[int] = ..., fingerprint: _Optional[bytes] = ..., run: _Optional[bytes] = ..., round: _Optional[int] = ..., client: _Optional[int] = ..., codec: _Optional[str] = ..., numel: _Optional[int] = ...) -> None: ...

class Part(_message.Message):
    __slots__ = ("name", "coder", "numel", "data", "table", "parameter", "ones")
    NAME_FIELD_NUMBER: _ClassVar[int]
    CODER_FIELD_NUMBER: _ClassVar[int]
    NUMEL_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    TABLE_FIELD_NUMBER: _ClassVar[int]
    PARAMETER_FIELD_NUMBER: _ClassVar[int]
    ONES_FIELD_NUMBER: _ClassVar[int]
    name: str
    coder: Coder
    numel: int
    data: bytes
    table: bytes
    parameter: int
    ones: int
    def __init__(self, name: _Optional[str] = ..., coder: _Optional[_Union[Coder, str]] = ..., numel: _Optional[int] = ..., data: _Optional[bytes] = ..., table: _Optional[bytes] = ..., parameter: _Optional[int] = ..., ones: _Optional[int] = ...) -> None: ...
