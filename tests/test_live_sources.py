"""What feeds the bus: closed forms, clients of other makers over real sockets, and noise."""

from __future__ import annotations

import asyncio
import json
import math
import sys
import time
import types

import numpy as np
import pytest

from hotloop.errors import InputError
from hotloop.live.bus import Bus
from hotloop.live.controls import ARKIT, INDEX, NAMES
from hotloop.live.sources import datagrams, ifacialmocap, message, osc, vmc
from hotloop.live.sources.receivers import OscReceiver, PhoneReceiver, follow_phone
from hotloop.live.sources.vtube_parameters import PARAMETERS
from hotloop.live.sources.vtube_studio import API, ErrorID, Plugin, Studio

pytest.importorskip("pythonosc", reason="the test extra brings it: make test")
from pythonosc.osc_bundle_builder import IMMEDIATELY, OscBundleBuilder
from pythonosc.osc_message_builder import OscMessageBuilder
from pythonosc.udp_client import SimpleUDPClient


def dgram(address: str, *values) -> bytes:
    builder = OscMessageBuilder(address)
    for value in values:
        builder.add_arg(value)
    return builder.build().dgram


def bundle(*parts) -> bytes:
    builder = OscBundleBuilder(IMMEDIATELY)
    for address, *values in parts:
        inner = OscMessageBuilder(address)
        for value in values:
            inner.add_arg(value)
        builder.add_content(inner.build())
    return builder.build().dgram


# OSC and VMC.


def test_messages_and_bundles_of_python_osc_are_read():
    assert osc.read(dgram("/hotloop/jawOpen", 0.5)) == [osc.Message("/hotloop/jawOpen", (0.5,))]
    nested = OscBundleBuilder(IMMEDIATELY)
    nested.add_content(OscMessageBuilder("/a").build())
    inner = OscBundleBuilder(IMMEDIATELY)
    inner.add_content(OscMessageBuilder("/b").build())
    nested.add_content(inner.build())
    assert [m.address for m in osc.read(nested.build().dgram)] == ["/a", "/b"]


def test_a_message_without_a_type_tag_gets_that_of_its_address():
    import struct

    def padded(text: bytes) -> bytes:
        return text + b"\0" * (4 - len(text) % 4)

    value = padded(b"/VMC/Ext/Blend/Val") + padded(b"Joy") + struct.pack(">f", 0.25)
    head = padded(b"/VMC/Ext/Bone/Pos") + padded(b"Head") + struct.pack(">7f", 0, 1, 0, 0, 0, 0, 1)
    plain = padded(b"/hotloop/jawOpen") + struct.pack(">f", 0.75)
    assert osc.read(value)[0].values == ("Joy", 0.25)
    assert osc.read(head)[0].values == ("Head", 0, 1, 0, 0, 0, 0, 1)
    assert osc.read(plain)[0].values == (0.75,)
    assert osc.read(padded(b"/VMC/Ext/Blend/Apply"))[0].values == ()
    with pytest.raises(InputError, match="must have a type tag"):
        osc.read(padded(b"/other") + b"12345678")


def test_shapes_count_when_they_are_applied_in_any_case_and_of_any_vrm():
    source = vmc.Vmc()
    told = source.feed(osc.read(bundle(
        ("/VMC/Ext/Blend/Val", "Joy", 0.75), ("/VMC/Ext/Blend/Val", "FUN", 0.5), ("/VMC/Ext/Blend/Val", "aa", 0.5),
        ("/VMC/Ext/Blend/Val", "BLINK_L", 0.25), ("/VMC/Ext/Blend/Val", "blinkRight", 1.0),
        ("/VMC/Ext/Blend/Val", "jawopen", 0.5), ("/VMC/Ext/Blend/Val", "Tail_Wag", 1.0),
    )))  # fmt: skip
    assert told == {}
    told = source.feed(osc.read(dgram("/VMC/Ext/Blend/Apply")))
    assert told == {
        "happy": 0.75, "mouthA": 0.5, "eyeBlinkLeft": 0.25, "eyeBlinkRight": 1.0, "jawOpen": 0.5, "Tail_Wag": 1.0,
    }  # fmt: skip
    assert source.feed(osc.read(dgram("/VMC/Ext/Blend/Apply"))) == {}
    bus = Bus(idle=False)
    assert bus.put("vmc", 0.0, told) == "[controls] vmc: no controls: Tail_Wag"
    assert set(vmc.SHAPES) >= {name.lower() for name in ARKIT}


def quaternion(axis: tuple[float, float, float], degrees: float) -> tuple[float, ...]:
    half = math.radians(degrees) / 2
    return (*(a * math.sin(half) for a in axis), math.cos(half))


@pytest.mark.parametrize("yaw", [-35.0, 0.0, 20.0])
@pytest.mark.parametrize("pitch", [-30.0, 0.0, 15.0])
@pytest.mark.parametrize("roll", [-25.0, 0.0, 10.0])
def test_a_heads_quaternion_is_yaw_pitch_and_roll(yaw, pitch, roll):
    """Against matrices: the head, turned about z, x, then y, carries its axes to where the angles say."""
    y, x, z = (math.radians(v) for v in (-yaw, -pitch, roll))
    about_y = np.array([[math.cos(y), 0, math.sin(y)], [0, 1, 0], [-math.sin(y), 0, math.cos(y)]])
    about_x = np.array([[1, 0, 0], [0, math.cos(x), -math.sin(x)], [0, math.sin(x), math.cos(x)]])
    about_z = np.array([[math.cos(z), -math.sin(z), 0], [math.sin(z), math.cos(z), 0], [0, 0, 1]])
    m = about_y @ about_x @ about_z
    w = math.sqrt(1 + np.trace(m)) / 2
    q = [(m[2, 1] - m[1, 2]) / (4 * w), (m[0, 2] - m[2, 0]) / (4 * w), (m[1, 0] - m[0, 1]) / (4 * w), w]
    source = vmc.Vmc()
    told = source.feed(osc.read(dgram("/VMC/Ext/Bone/Pos", "Head", 0.0, 1.5, 0.0, *(3 * float(v) for v in q))))
    assert [told[name] for name in ("headYaw", "headPitch", "headRoll")] == pytest.approx([yaw, pitch, roll], abs=1e-4)


def test_signs_of_the_head_are_the_tables():
    """Unity: +y turns the avatar to its own right, the picture's left; +x looks down; +z tips the top to its left."""
    for axis, expected in (((0, 1, 0), (-10, 0, 0)), ((1, 0, 0), (0, -10, 0)), ((0, 0, 1), (0, 0, 10))):
        assert vmc.angles(quaternion(axis, 10)) == pytest.approx(expected, abs=1e-9)
    assert vmc.angles((0.0, 0.0, 0.0, 0.0)) is None and vmc.angles((math.nan, 0.0, 0.0, 1.0)) is None
    source = vmc.Vmc()
    half = quaternion((0, 1, 0), -10)
    told = source.feed([osc.Message("/VMC/Ext/Bone/Pos", (n, 0.0, 0.0, 0.0, *half)) for n in ("Neck", "Head")])
    assert told["headYaw"] == pytest.approx(20)
    assert source.feed([osc.Message("/VMC/Ext/Bone/Pos", ("Head", *[0.0] * 7))]) == {}
    assert source.counts["malformed"] == 1


def test_python_oscs_client_moves_the_bus_over_a_real_socket():
    bus, settings = Bus(idle=False), {}
    receiver = OscReceiver(bus.put, settings.__setitem__, frozenset({"steps"}))

    async def run() -> dict[str, int]:
        protocol = datagrams.Datagrams(receiver.take, time.monotonic, rate=1e-9, burst=9)
        transport = await datagrams.listen("vmc", protocol, 0)
        assert transport.get_extra_info("sockname")[0] == "127.0.0.1"
        client = SimpleUDPClient("127.0.0.1", transport.get_extra_info("sockname")[1])
        client.send_message("/VMC/Ext/Blend/Val", ["Angry", 1.0])
        client.send_message("/VMC/Ext/Blend/Apply", [])
        client.send_message("/VMC/Ext/Bone/Pos", ["Head", 0.0, 0.0, 0.0, *map(float, quaternion((0, 1, 0), -15))])
        client.send_message("/hotloop/jawOpen", 0.5)
        client.send_message("/hotloop/steps", 4)
        client.send_message("/hotloop/expression", "gleeful")
        client._sock.sendto(b"no osc", ("127.0.0.1", client._port))
        client._sock.sendto(b"/" * (datagrams.LARGEST + 1), ("127.0.0.1", client._port))
        for _ in range(3):
            client.send_message("/hotloop/tongueOut", 1.0)
        async with asyncio.timeout(5):
            while sum(protocol.counts.values()) < 11:
                await asyncio.sleep(0.005)
        transport.close()
        client._sock.close()
        return protocol.counts

    assert asyncio.run(run()) == {"taken": 9, "too_large": 1, "too_many": 1, "others": 0}
    shown = bus.sample(time.monotonic())
    assert [shown[INDEX[n]] for n in ("angry", "jawOpen", "tongueOut")] == [1.0, 0.5, 1.0]
    assert shown[INDEX["headYaw"]] == pytest.approx(15, abs=1e-3)
    assert settings == {"steps": 4}
    assert receiver.wrong == 2 and "begins with an address" in receiver.said


def test_a_phone_is_asked_and_heard_alone():
    bus = Bus(idle=False)
    receiver, asked = PhoneReceiver(bus.put), []

    class Phone(asyncio.DatagramProtocol):
        def connection_made(self, transport):
            self.transport = transport

        def datagram_received(self, data, addr):
            asked.append(data)
            self.transport.sendto(b"hello", addr)
            self.transport.sendto(RECORDED.encode(), addr)

    async def run() -> None:
        loop = asyncio.get_running_loop()
        phone, _ = await loop.create_datagram_endpoint(Phone, local_addr=("127.0.0.1", 0))
        at = phone.get_extra_info("sockname")[1]
        task = asyncio.create_task(follow_phone("127.0.0.1", receiver, time.monotonic, port=0, phone_port=at))
        async with asyncio.timeout(5):
            while not bus.snapshot(0.0)["sources"]:
                await asyncio.sleep(0.005)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        phone.close()
        with pytest.raises(InputError, match="must be asked for"):
            await follow_phone("192.168.1.7", receiver, time.monotonic)

    asyncio.run(run())
    assert asked == [ifacialmocap.HELLO] and receiver.wrong == 1 and "at most 256 shapes" in receiver.said
    assert bus.sample(time.monotonic())[INDEX["jawOpen"]] == pytest.approx(0.37)


def test_listeners_stay_on_loopback_unless_asked():
    for host in ("0.0.0.0", "192.168.1.5", "example.org", "::"):
        with pytest.raises(InputError, match=r"\[vmc\] addresses other than loopback must be asked for"):
            datagrams.check_host("vmc", host, anywhere=False)
    datagrams.check_host("vmc", "::1", anywhere=False)
    datagrams.check_host("vmc", "0.0.0.0", anywhere=True)

    async def twice() -> None:
        protocol = datagrams.Datagrams(lambda data, t: None, time.monotonic)
        first = await datagrams.listen("vmc", protocol, 0)
        try:
            with pytest.raises(InputError, match="must be free"):
                await datagrams.listen("vmc", protocol, first.get_extra_info("sockname")[1])
        finally:
            first.close()

    asyncio.run(twice())


def test_a_bucket_lets_its_rate_and_burst_through():
    bucket = datagrams.Bucket(10, 5)
    assert sum(bucket.takes(1.0) for _ in range(20)) == 5
    assert sum(bucket.takes(1.0 + i / 100) for i in range(1, 201)) in (20, 21)


# iFacialMocap.

# By hand after the format that its makers document.
RECORDED = (
    "mouthSmile_R&12|eyeLookOut_L&30|eyeLookIn_R&20|mouthClose&8|jawOpen&37|eyeBlink_L&100|eyeBlink_R&4|browInnerUp&20|"
    "tongueOut&0|hapihapi&50|=head#-21.488958,-6.038993,-6.6019735,-0.03,-0.10,-0.66|"
    "rightEye#6.0297494,2.4403017,0.25649446|leftEye#6.034903,-1.6660284,-0.17520553|"
)


def test_a_recorded_text_of_ifacialmocap_is_read():
    phone = ifacialmocap.FacialMocap()
    told = phone.feed(RECORDED.encode())
    assert told["jawOpen"] == pytest.approx(0.37) and told["eyeBlinkLeft"] == 1.0
    assert told["mouthSmileRight"] == pytest.approx(0.12) and told["hapihapi"] == 0.5
    assert told["headPitch"] == pytest.approx(21.488958) and told["headYaw"] == pytest.approx(-6.038993)
    assert told["headRoll"] == pytest.approx(6.6019735) and told["headX"] == 0 and "gazeX" not in told
    moved = phone.feed(RECORDED.replace("-0.03,-0.10", "-0.01,-0.15").encode())
    assert (moved["headX"], moved["headY"], moved["headZ"]) == pytest.approx((2.0, -5.0, 0.0))
    assert Bus(idle=False).put("phone", 0.0, told) == "[controls] phone: no controls: hapihapi"
    old = phone.feed(b"mouthSmile_L-37|=head#1,2,3|rightEye#-6,12,0|leftEye#-6,18,0|")
    assert old["mouthSmileLeft"] == pytest.approx(0.37) and old["headYaw"] == 2
    assert (old["gazeX"], old["gazeY"]) == pytest.approx((0.5, 0.2))


@pytest.mark.parametrize("text", [
    b"", b"hello", b"\xff\xfe=", b"jawOpen&=head#1,2,3", b"jawOpen&5|=head#1,2|", b"jawOpen&5|=head#1,nan,3|",
    b"jawOpen&1.2.3|=", b"|".join([b"a&1"] * 300) + b"|=", b"jawOpen&5|=leftEye#a,b,c|", b"jawOpen&1e999|=",
])  # fmt: skip
def test_what_is_no_such_text_is_refused_in_one_line(text):
    with pytest.raises(InputError, match=r"^\[ifacialmocap\] [^\n]*$"):
        ifacialmocap.FacialMocap().feed(text)


# JSON.


def test_a_json_message_gives_controls_settings_and_time():
    told = message.parse(json.dumps({
        "t": 12.5, "controls": {"jawOpen": 0.4, "sad": 0.25}, "expression": "happy", "prompt": "a cat", "play": "nod",
        "settings": {"steps": 2},
    }))  # fmt: skip
    assert told.t == 12.5 and told.play == "nod" and told.settings == {"steps": 2, "prompt": "a cat"}
    assert told.controls["happy"] == 1 and told.controls["sad"] == 0.25 and told.controls["jawOpen"] == 0.4
    assert message.parse(b"{}") == message.Message()


@pytest.mark.parametrize("text", [
    "", "[]", "{", "null", "[" * 100_000, '{"t": "now"}', '{"t": NaN}', '{"t": true}', '{"t": 1' + "0" * 400 + "}",
    '{"controls": []}', '{"expression": "gleeful"}', '{"expression": 3}', '{"prompt": 3}', '{"promt": "x"}',
    json.dumps({"controls": dict.fromkeys(map(str, range(300)), 0)}), b"\xff", '{"prompt": "' + "x" * 70_000 + '"}',
])  # fmt: skip
def test_a_bad_json_message_is_refused_in_one_line(text):
    with pytest.raises(InputError, match=r"^\[[a-z]+\] [^\n]*$"):
        message.parse(text)


# VTube Studio.


def studio(**options) -> Studio:
    return Studio(Bus(idle=False), allow=lambda name, developer: name != "Unwanted", motions=("nod",), **options)


def ask(plugin: Plugin, kind: str, data: dict | None = None, t: float = 0.0, **fields) -> dict:
    request = {"apiName": API, "apiVersion": "1.0", "requestID": "r1", "messageType": kind, "data": data} | fields
    told = json.loads(
        plugin.reply(json.dumps({k: v for k, v in request.items() if v is not ...}), t, 1_700_000_000_000)
    )
    assert told["apiName"] == API and told["apiVersion"] == "1.0" and told["timestamp"] == 1_700_000_000_000
    return told


def error(told: dict) -> ErrorID:
    assert told["messageType"] == "APIError" and "\n" not in told["data"]["message"], told
    return ErrorID(told["data"]["errorID"])


def opened(shared: Studio, name: str = "Bonker") -> Plugin:
    plugin, who = Plugin(shared), {"pluginName": name, "pluginDeveloper": "Somebody"}
    token = ask(plugin, "AuthenticationTokenRequest", who)["data"]["authenticationToken"]
    assert ask(plugin, "AuthenticationRequest", who | {"authenticationToken": token})["data"]["authenticated"]
    return plugin


def inject(plugin: Plugin, t: float, mode: str | None = None, **values) -> dict:
    rows = [{"id": name, "value": value} for name, value in values.items()]
    return ask(plugin, "InjectParameterDataRequest", {"parameterValues": rows} | ({"mode": mode} if mode else {}), t)


def test_a_request_is_checked_from_the_outside_in():
    plugin = Plugin(studio())
    assert ask(plugin, "APIStateRequest")["data"]["currentSessionAuthenticated"] is False
    assert error(json.loads(plugin.reply("{", 0.0, 0))) == ErrorID.JSONInvalid
    assert error(ask(plugin, "APIStateRequest", apiName="Other")) == ErrorID.APINameInvalid
    assert error(ask(plugin, "APIStateRequest", apiVersion="2.0")) == ErrorID.APIVersionInvalid
    for bad in ("", "x" * 65, "ä", 3):
        assert error(ask(plugin, "APIStateRequest", requestID=bad)) == ErrorID.RequestIDInvalid
    assert error(ask(plugin, "")) == ErrorID.RequestTypeMissingOrEmpty
    assert error(ask(plugin, "FlyRequest")) == ErrorID.RequestTypeUnknown
    assert error(ask(plugin, "InputParameterListRequest")) == ErrorID.RequestRequiresAuthetication
    assert ask(plugin, "APIStateRequest")["requestID"] == "r1"
    assert len(ask(plugin, "APIStateRequest", requestID=...)["requestID"]) == 32


def test_tokens_are_of_one_plugin_and_last_beyond_a_connection():
    shared = studio()
    plugin, who = Plugin(shared), {"pluginName": "Bonker", "pluginDeveloper": "Somebody"}
    for name, bad, expected in (
        ("pluginName", "ab", 52), ("pluginName", "x" * 33, 52), ("pluginDeveloper", None, 53),
        ("pluginName", "Unwanted", 50),
    ):  # fmt: skip
        assert error(ask(plugin, "AuthenticationTokenRequest", who | {name: bad})) == expected
    assert error(ask(plugin, "AuthenticationRequest", who)) == ErrorID.AuthenticationTokenMissing
    opened(shared)
    (token,) = shared.tokens
    assert ask(Plugin(shared), "AuthenticationRequest", who | {"authenticationToken": token})["data"]["authenticated"]
    other = who | {"pluginName": "Other", "authenticationToken": token}
    assert not ask(Plugin(shared), "AuthenticationRequest", other)["data"]["authenticated"]


def test_what_a_plugin_sets_moves_the_bus_and_is_lost_after_a_second():
    shared = studio()
    first, second = opened(shared), opened(shared, "Second")
    assert inject(first, 1.0, FaceAngleX=12.0, EyeOpenLeft=0.25, MouthX=-0.5, Brows=0.75)["data"] == {}
    shown = shared.bus.sample(1.0)
    names = ("headYaw", "eyeBlinkLeft", "mouthRight", "mouthLeft", "browOuterUpLeft", "browDownLeft")
    assert [shown[INDEX[n]] for n in names] == pytest.approx([12, 0.75, 0.5, 0, 0.5, 0])
    assert error(inject(second, 1.5, FaceAngleX=0.0, MouthOpen=1.0)) == ErrorID.InjectDataParamControlledByOtherPlugin
    assert shared.bus.sample(1.5)[INDEX["jawOpen"]] == 0  # all or nothing
    assert inject(second, 1.6, "add", FaceAngleX=-2.0)["data"] == {}
    assert inject(first, 1.6, "add", FaceAngleX=-3.0)["data"] == {}
    assert ask(second, "ParameterValueRequest", {"name": "FaceAngleX"}, 1.7)["data"]["value"] == pytest.approx(7.0)
    shared.bus.sample(1.7)
    assert shared.bus.sample(1.9)[INDEX["headYaw"]] == pytest.approx(7.0, abs=0.01)
    assert inject(second, 2.1, FaceAngleX=5.0)["data"] == {}
    assert ask(second, "ParameterValueRequest", {"name": "FaceAngleX"}, 9.0)["data"]["value"] == 0
    assert ask(second, "ParameterValueRequest", {"name": "EyeOpenLeft"}, 9.0)["data"]["value"] == 1


def test_bad_injections_have_the_apis_own_numbers():
    plugin = opened(studio())
    for values, expected in (
        ([], ErrorID.InjectDataNoDataProvided), (None, ErrorID.InjectDataNoDataProvided),
        ([{"id": "Nothing", "value": 1}], ErrorID.InjectDataParamNameNotFound),
        ([7], ErrorID.InjectDataParamNameNotFound),
        ([{"id": "MouthOpen", "value": 1e7}], ErrorID.InjectDataValueInvalid),
        ([{"id": "MouthOpen", "value": math.nan}], ErrorID.InjectDataValueInvalid),
        ([{"id": "MouthOpen", "value": "1"}], ErrorID.InjectDataValueInvalid),
        ([{"id": "MouthOpen", "value": 1, "weight": 2}], ErrorID.InjectDataWeightInvalid),
    ):  # fmt: skip
        assert error(ask(plugin, "InjectParameterDataRequest", {"parameterValues": values})) == expected
    assert error(inject(plugin, 0.0, "multiply", MouthOpen=1)) == ErrorID.InjectDataModeUnknown


def test_custom_parameters_are_made_listed_written_and_deleted_by_their_plugin():
    shared = studio()
    one, other = opened(shared), opened(shared, "Second")
    made = {"parameterName": "TailWag", "min": -50, "max": 50, "defaultValue": 10}
    for change, expected in (
        ({"parameterName": "abc"}, 350), ({"parameterName": "Tail Wag"}, 350), ({"parameterName": "x" * 33}, 350),
        ({"min": 1e7}, 351), ({"max": None}, 351), ({"explanation": "x" * 256}, 353),
        ({"parameterName": "MouthOpen"}, 354),
    ):  # fmt: skip
        assert error(ask(one, "ParameterCreationRequest", made | change)) == expected
    assert ask(one, "ParameterCreationRequest", made)["data"] == {"parameterName": "TailWag"}
    assert error(ask(other, "ParameterCreationRequest", made)) == 352
    assert inject(other, 0.0, TailWag=3.0)["data"] == {}
    (row,) = ask(one, "InputParameterListRequest", t=0.5)["data"]["customParameters"]
    assert row == {
        "name": "TailWag",
        "addedBy": "Bonker/Somebody",
        "value": 3,
        "min": -50,
        "max": 50,
        "defaultValue": 10,
    }
    for i in range(99):
        ask(one, "ParameterCreationRequest", made | {"parameterName": f"Tail{i}"})
    assert error(ask(one, "ParameterCreationRequest", made | {"parameterName": "TooMany"})) == 355
    for name, who, expected in (
        ("Nothing", one, 401),
        ("TailWag", other, 402),
        ("MouthOpen", one, 403),
        (None, one, 400),
    ):
        assert error(ask(who, "ParameterDeletionRequest", {"parameterName": name})) == expected
    assert ask(one, "ParameterDeletionRequest", {"parameterName": "TailWag"})["data"] == {"parameterName": "TailWag"}


def test_hotkeys_and_expression_files_switch_expressions_and_play_motions():
    played = []

    def busy(name: str) -> None:
        raise InputError("live", "one motion at a time", name)

    told = ask(opened(studio(play=busy)), "HotkeyTriggerRequest", {"hotkeyID": "nod"})
    assert error(told) == ErrorID.InternalServerError and "one motion at a time" in told["data"]["message"]
    shared = studio(play=played.append)
    plugin = opened(shared)
    keys = ask(plugin, "HotkeysInCurrentModelRequest")["data"]["availableHotkeys"]
    assert [key["name"] for key in keys] == ["happy", "angry", "cold", "sad", "surprised", "neutral", "nod"]
    assert error(ask(plugin, "HotkeysInCurrentModelRequest", {"modelID": "other"})) == 152
    for asked in ("HAPPY", keys[-1]["hotkeyID"]):
        ask(plugin, "HotkeyTriggerRequest", {"hotkeyID": asked}, 1.0)
    assert played == ["nod"] and shared.bus.sample(1.5)[INDEX["happy"]] == 1
    assert error(ask(plugin, "HotkeyTriggerRequest", {"hotkeyID": "fly"})) == 202
    assert error(ask(plugin, "HotkeyTriggerRequest", {"hotkeyID": "nod", "itemInstanceID": "x"})) == 207
    states = ask(plugin, "ExpressionStateRequest", {"details": True})["data"]["expressions"]
    assert [row["name"] for row in states if row["active"]] == ["happy"] and states[0]["usedInHotkeys"][0][
        "name"
    ] == "happy"
    sad = {"expressionFile": "sad.exp3.json"}
    ask(plugin, "ExpressionActivationRequest", sad | {"active": True}, 2.0)
    (row,) = ask(plugin, "ExpressionStateRequest", sad)["data"]["expressions"]
    assert row["active"] and shared.bus.sample(3.0)[INDEX["sad"]] == 1
    for request, first in (("ExpressionStateRequest", 600), ("ExpressionActivationRequest", 650)):
        assert error(ask(plugin, request, {"expressionFile": "sad.json"})) == first
        assert error(ask(plugin, request, {"expressionFile": "glee.exp3.json"})) == first + 1
    for name in ("sad", "happy"):
        ask(plugin, "ExpressionActivationRequest", {"expressionFile": f"{name}.exp3.json", "active": False}, 4.0)
    shared.bus.sample(4.0)
    assert shared.bus.sample(6.0)[INDEX["happy"]] == 0


def test_every_default_parameter_moves_controls_that_there_are():
    assert {control for row in PARAMETERS.values() for control, _, _ in row.moves} <= set(NAMES)
    assert all(row.low <= row.default <= row.high for row in PARAMETERS.values())


def test_pyvts_speaks_with_the_server(monkeypatch, tmp_path):
    pytest.importorskip("websockets", reason="the test extra brings it: make test")
    monkeypatch.setitem(sys.modules, "cv2", types.ModuleType("cv2"))  # of its icons
    pyvts = pytest.importorskip("pyvts", reason="the test environment brings it: make test")
    from websockets.asyncio.client import connect
    from websockets.exceptions import InvalidStatus

    from hotloop.live.sources.vtube_server import serve

    shared = studio()

    async def run() -> list[dict]:
        server = await serve(shared, time.monotonic, port=0)
        port = server.sockets[0].getsockname()[1]
        client = pyvts.vts(
            plugin_info={
                "plugin_name": "pyvts",
                "developer": "genteki",
                "authentication_token_path": str(tmp_path / "t"),
            },
            vts_api_info={"version": "1.0", "name": API, "host": "127.0.0.1", "port": port},
        )
        await client.connect()
        await client.request_authenticate_token()
        assert await client.request_authenticate()
        requests = client.vts_request
        told = [
            await client.request(request)
            for request in (
                requests.requestCustomParameter("TailWag", min=0, max=10, default_value=1),
                requests.requestSetParameterValue("MouthOpen", 0.5),
                requests.requestSetMultiParameterValue(["TailWag", "FaceAngleY"], [2, 7.0], weight=1),
                requests.requestParameterValue("TailWag"),
                requests.requestTrackingParameterList(),
                requests.requestHotKeyList(),
                requests.requestTriggerHotKey("angry"),
                requests.requestMoveModel(0, 0),
            )
        ]
        with pytest.raises(InvalidStatus, match="403"):
            async with connect(f"ws://127.0.0.1:{port}", origin="https://example.org"):
                pass
        with pytest.raises(InputError, match="must be free"):
            await serve(shared, time.monotonic, port=port)
        await client.close()
        server.close()
        await server.wait_closed()
        return told

    told = asyncio.run(run())
    kinds = ["ParameterCreation", "InjectParameterData", "InjectParameterData", "ParameterValue", "InputParameterList"]
    kinds += ["HotkeysInCurrentModel", "HotkeyTrigger"]
    assert [one["messageType"] for one in told] == [*(f"{kind}Response" for kind in kinds), "APIError"]
    assert told[3]["data"]["value"] == 2 and told[-1]["data"]["errorID"] == ErrorID.RequestTypeUnknown
    shown = shared.bus.sample(time.monotonic())
    assert shown[INDEX["jawOpen"]] == 0.5 and shown[INDEX["headPitch"]] == 7


# Noise.


def test_no_noise_raises_anything_but_input_error_and_it_takes_bounded_time():
    rng = np.random.default_rng(0)
    good = [
        dgram("/VMC/Ext/Blend/Val", "Joy", 0.5), dgram("/VMC/Ext/Bone/Pos", "Head", *[0.5] * 7), RECORDED.encode(),
        bundle(("/VMC/Ext/Blend/Val", "A", 0.5), ("/VMC/Ext/Blend/Apply",), ("/hotloop/jawOpen", 0.5)),
        json.dumps({"apiName": API, "apiVersion": "1.0", "messageType": "InjectParameterDataRequest", "data": {
            "parameterValues": [{"id": "MouthOpen", "value": 0.5}]}}).encode(),
        b'{"t": 1, "controls": {"jawOpen": 0.4}}',
    ]  # fmt: skip
    bus, plugin = Bus(), opened(studio())
    listening = (OscReceiver(bus.put, settings=frozenset({"steps"})), PhoneReceiver(bus.put))

    def read(data: bytes, t: float) -> None:
        for receiver in listening:
            receiver.take(data, t)
            assert "\n" not in receiver.said and len(receiver.said) < 400
        try:
            bus.put("web", t, message.parse(data).controls)
        except InputError as e:
            assert "\n" not in str(e) and len(str(e)) < 400
        json.loads(plugin.reply(data, t, 0))

    who = {"authenticationToken": "\ud800", "pluginName": "\ud800", "pluginDeveloper": "\ud800"}
    assert not ask(Plugin(studio()), "AuthenticationRequest", who)["data"].get("authenticated")

    worst = 0.0
    for i in range(600):
        data = bytearray(good[i % len(good)])
        for at in rng.integers(0, len(data), rng.integers(1, 6)):
            data[at] = rng.integers(256)
        cut = bytes(data[: rng.integers(1, len(data) + 1)] if i % 3 == 0 else data)
        started = time.process_time()
        read(cut, i / 100)
        worst = max(worst, time.process_time() - started)
    for hostile in (
        b"#bundle\0" + b"\0" * 8 + b"\0\0\0\0" * 4000, b"#bundle\0" + b"\0" * 8 + b"\xff" * 1000, b"/" * 16000,
        (b"#bundle\0" + b"\0" * 8 + b"\0\0\1\0") * 1000, b"/a\0\0," + b"[" * 16000, b"/a\0\0," + b"f" * 16000,
        b"#bundle\0" + b"\0" * 8 + b"\0\0\0\4/a\0\0" * 2000, b"[" * 16000, b"a&1|" * 4000 + b"=", b"{" + b'"a":' * 3000,
    ):  # fmt: skip
        started = time.process_time()
        read(hostile, 100.0)
        worst = max(worst, time.process_time() - started)
    assert worst < 0.25
    assert np.isfinite(bus.sample(101.0)).all()
