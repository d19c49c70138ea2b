# SPDX-License-Identifier: GPL-2.0-only
"""The status and the reports as maps: frozen keys, round trips, and that decoding is strict."""

from __future__ import annotations

import copy
import json
import math
import types
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import msgpack
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bdr.common.errors import StatusError
from bdr.common.host.programs import PRIORITIES
from bdr.common.source.session import Phase
from bdr.common.status.model import (
    IntakeStatus,
    LagStatus,
    ReplicaStatus,
    StageStatus,
    VolumeStatus,
    decode_status,
    encode_status,
)
from bdr.common.status.reports import LinkCounts, Report, decode_report, encode_report
from bdr.common.status.states import ConnectionState, VolumeRole
from tests.unit.status_maps import SOURCE_MAP, TARGET_MAP
from tests.unit.statuses import SOURCE, TARGET, VALUES, report

BOTH = pytest.mark.parametrize(
    ("status", "frozen"), [(SOURCE, SOURCE_MAP), (TARGET, TARGET_MAP)], ids=["source", "target"]
)
MAPS = pytest.mark.parametrize("frozen", [SOURCE_MAP, TARGET_MAP], ids=["source", "target"])


@BOTH
def test_keys_and_values_that_json_users_see_stay_what_they_are(
    status: VolumeStatus, frozen: dict[str, Any]
) -> None:
    assert status.to_map() == frozen
    assert VolumeStatus.from_map(frozen) == status


def test_process_without_a_report_has_no_values() -> None:
    silent = replace(SOURCE, stages=(replace(SOURCE.stages[0], pid=None, values=None),))
    assert silent.to_map()["stages"][0]["values"] == {}
    assert VolumeStatus.from_map(silent.to_map()) == silent


# Any status crosses unchanged.

COUNTS = st.integers(0, (1 << 64) - 1)
SLOTS = st.none() | st.integers(0, (1 << 52) - 1)
SIMPLE: Mapping[Any, st.SearchStrategy[Any]] = {
    int: COUNTS,
    float: st.floats(allow_nan=False, allow_infinity=False),
    bool: st.booleans(),
    str: st.text(max_size=20),
    # A clock that a user has set may say anything.
    datetime: st.datetimes().map(
        lambda time: time.replace(microsecond=time.microsecond // 1000 * 1000, tzinfo=UTC)
    ),
    type(None): st.none(),
}


def any_of(hint: Any) -> st.SearchStrategy[Any]:
    """Everything that an annotation allows."""
    if hint in SIMPLE:
        return SIMPLE[hint]
    if isinstance(hint, types.UnionType):
        return st.one_of([any_of(each) for each in get_args(hint)])
    if get_origin(hint) is tuple:
        return st.lists(any_of(get_args(hint)[0]), max_size=3).map(tuple)
    if get_origin(hint) is Mapping:
        return st.dictionaries(st.text(max_size=8), any_of(get_args(hint)[1]), max_size=3)
    if issubclass(hint, Enum):
        return st.sampled_from(hint)
    return STAGES if hint is StageStatus else built(hint)


def built(kind: type, **given: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Any value of a dataclass; attributes that depend on others are given."""
    hints = get_type_hints(kind)
    others = {field.name for field in fields(kind)} - given.keys()
    return st.builds(kind, **given, **{name: any_of(hints[name]) for name in others})


def values_of(stage: str) -> st.SearchStrategy[Any]:
    return built(type(VALUES[stage]))


STAGES = st.sampled_from(sorted(VALUES)).flatmap(
    lambda stage: built(StageStatus, stage=st.just(stage), values=st.none() | values_of(stage))
)


def statuses(role: VolumeRole) -> st.SearchStrategy[VolumeStatus]:
    is_source = role is VolumeRole.SOURCE
    intake = st.none() if is_source else built(IntakeStatus)
    return built(
        VolumeStatus,
        role=st.just(role),
        # Slots of 4096 bytes: their bytes are a number of 64 bits, too.
        lag=built(LagStatus, slots=SLOTS) if is_source else st.none(),
        replica=built(ReplicaStatus, intake=intake),
    )


ANY_STATUS = st.sampled_from(VolumeRole).flatmap(statuses)
ANY_REPORT = st.sampled_from(sorted(VALUES)).flatmap(
    lambda stage: built(Report, stage=st.just(stage), values=values_of(stage))
)


@given(ANY_STATUS)
def test_any_status_crosses_the_socket_and_json_unchanged(status: VolumeStatus) -> None:
    assert decode_status(encode_status(status)) == status
    assert VolumeStatus.from_map(json.loads(json.dumps(status.to_map()))) == status


@given(ANY_REPORT)
def test_any_report_crosses_the_socket_unchanged(found: Report) -> None:
    assert decode_report(encode_report(found)) == found


# Nothing else is taken for one.

DERIVED = {("exit_code",), ("bytes_behind",)}
"""Keys that follow from others; nobody decodes them."""


def derived_of(frozen: dict[str, Any]) -> set[tuple[Any, ...]]:
    """Of the map of either side."""
    return DERIVED | ({("seconds_behind",)} if frozen["role"] == "target" else set())


def places(tree: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in a map."""
    entries = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in entries:
        yield (*above, key)
        if isinstance(value, dict | list):
            yield from places(value, (*above, key))


def changed(tree: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy with another value at a place; without the key for `...`."""
    found = copy.deepcopy(tree)
    inner = found
    for key in path[:-1]:
        inner = inner[key]
    if value is ...:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return found


def is_free(path: tuple[Any, ...]) -> bool:
    """Whether the key at this place is a name that anybody may have given."""
    return (path[0] == "events" and len(path) > 1) or str(path[-1]).startswith("dropped_")


@MAPS
def test_each_missing_key_is_an_error(frozen: dict[str, Any]) -> None:
    ignored = derived_of(frozen)
    keys = [path for path in places(frozen) if isinstance(path[-1], str) and not is_free(path)]
    assert len(keys) > 60
    for path in keys:
        if path in ignored:
            VolumeStatus.from_map(changed(frozen, path, ...))
            continue
        with pytest.raises(StatusError):
            VolumeStatus.from_map(changed(frozen, path, ...))


WRONG: tuple[Any, ...] = (
    -1, 1 << 64, 1.5, float("nan"), float("inf"), True, "odd", "2026-01-02T03:04:05", b"x",
    None, [], [None], {}, {"a": 1}, {1: 2},
)  # fmt: skip


def conforms(value: Any, hint: Any) -> bool:
    """Whether a decoded value is what its annotation says."""
    if isinstance(hint, types.UnionType):
        return any(conforms(value, each) for each in get_args(hint))
    if get_origin(hint) is tuple:
        return type(value) is tuple and all(conforms(each, get_args(hint)[0]) for each in value)
    if get_origin(hint) is Mapping:
        return all(type(k) is str and conforms(v, get_args(hint)[1]) for k, v in value.items())
    if is_dataclass(hint):
        hints = get_type_hints(hint)
        return type(value) is hint and all(conforms(getattr(value, n), hints[n]) for n in hints)
    if hint is float:
        return type(value) is int or (type(value) is float and math.isfinite(value))
    if hint is int:
        return type(value) is int and 0 <= value < 1 << 64
    if hint is datetime:
        return type(value) is datetime and value.tzinfo is not None
    return type(value) is hint


@MAPS
def test_whatever_is_decoded_has_the_types_of_the_model_and_the_values_that_were_sent(
    frozen: dict[str, Any],
) -> None:
    refused = 0
    for path in places(frozen):
        if path in derived_of(frozen):
            continue
        for value in WRONG:
            tree = changed(frozen, path, value)
            try:
                found = VolumeStatus.from_map(tree)
            except StatusError:
                refused += 1
                continue
            assert conforms(found, VolumeStatus), (path, value)
            again = found.to_map()
            assert again == tree | {path[0]: again[path[0]] for path in derived_of(frozen)}
    assert refused > 700


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("ring", "head"), "x", "ring: head: found 'x', wanted a number from 0 on"),
        (("ring", "mode"), "FULL", "ring: mode: found 'FULL', wanted one of STREAM, OVERFLOW"),
        (("stages", 1, "state"), [], "stages: state: found list, wanted one of reporting,"),
        (("stages", 0, "stage"), "cook", "stages: found 'cook', wanted a stage, one of reader,"),
        (("replica", "since_utc"), "today", "replica: since_utc: found 'today', wanted a time"),
    ],
)
def test_error_names_the_place(path: tuple[Any, ...], value: Any, said: str) -> None:
    with pytest.raises(StatusError) as caught:
        VolumeStatus.from_map(changed(SOURCE_MAP, path, value))
    assert said in str(caught.value)


@pytest.mark.parametrize("raw", [None, [], "x", {}, SOURCE_MAP | {"version": 2}])
def test_no_map_of_this_version_is_an_error(raw: object) -> None:
    with pytest.raises(StatusError):
        VolumeStatus.from_map(raw)


def test_keys_of_the_other_side_are_an_error() -> None:
    for frozen, other in ((SOURCE_MAP, "target"), (TARGET_MAP, "source")):
        with pytest.raises(StatusError):
            VolumeStatus.from_map(frozen | {"role": other})


@BOTH
def test_keys_of_a_later_version_are_ignored_anywhere(
    status: VolumeStatus, frozen: dict[str, Any]
) -> None:
    maps = [(), *(path for path in places(frozen) if isinstance(at(frozen, path), dict))]
    assert len(maps) > 6
    for path in maps:
        if path != ("events",):
            assert VolumeStatus.from_map(changed(frozen, (*path, "later"), [1])) == status


@pytest.mark.parametrize("version", [0, 2, None, "1"])
def test_report_of_another_version_is_an_error(version: object) -> None:
    tree = msgpack.unpackb(encode_report(report("v-reader")))
    assert decode_report(msgpack.packb(tree)) == report("v-reader")
    with pytest.raises(StatusError):
        decode_report(msgpack.packb(tree | {"version": version}))


def at(tree: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        tree = tree[key]
    return tree


@given(st.binary(max_size=200))
def test_any_bytes_are_a_report_a_status_or_the_typed_error(data: bytes) -> None:
    for decode in (decode_report, decode_status):
        with pytest.raises(StatusError):
            decode(data)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), 1 << 63) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=6,
)


@given(st.sampled_from(["version", "stage", "name", "pid", "sent_at", "is_last", "values"]), JSON)
@example("values", {})
def test_a_report_with_a_wrong_field_is_the_typed_error_or_still_typed(
    key: str, value: Any
) -> None:
    tree = msgpack.unpackb(encode_report(report("v-sender-1"))) | {key: value}
    try:
        found = decode_report(msgpack.packb(tree))
    except StatusError:
        return
    assert isinstance(found.name, str)
    assert isinstance(found.pid, int)
    assert type(found.values) is type(VALUES[found.stage])
    assert isinstance(found.values.links, LinkCounts)


# The words are those of the processes and of the docs.


def test_every_phase_of_the_reader_is_a_state_of_the_connection() -> None:
    assert {phase.name for phase in Phase} <= set(ConnectionState.__members__)


def test_every_stage_but_the_monitor_has_values_of_its_own() -> None:
    assert set(VALUES) == set(PRIORITIES) - {"monitor"}
    for stage in VALUES:
        name = f"v-{stage}-1"
        assert decode_report(encode_report(report(name))) == report(name)


@MAPS
def test_every_key_is_documented(frozen: dict[str, Any]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    inner = ("values", "hooks", "events")
    keys = [path for path in places(frozen) if not any(key in inner for key in path[:-1])]
    for key in {path[-1] for path in keys if isinstance(path[-1], str)}:
        assert f"`{key}`" in page, key
