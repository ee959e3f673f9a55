"""`fewstep bench plan`: answers that can be worked out, and what it refuses."""

import json
from pathlib import Path

import pytest

from benchmarks.serving.costs import fitted, linear, measured, read_times
from benchmarks.serving.mix import Kind, described, mean_calls, parse_mix, shares
from benchmarks.serving.plan import fewest, main
from benchmarks.serving.units import seconds, seconds_from_zero


def test_the_answer_is_that_of_the_queue(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """One slot, calls of 10 ms, 150 requests/s: two devices would be busy to 75 %; the table says what each takes."""
    out = tmp_path / "plan.json"
    flags = "--rate 150 --mix 1 --p99 60ms --a 10ms --capacity 1 --arrivals poisson --requests 20000"
    assert main([*flags.split(), "--json", str(out)]) == 0
    result = json.loads(out.read_text())
    (answer,) = [row for row in result["rows"] if row["within"]]
    assert answer["devices"] == 2 and answer["busy"] == pytest.approx(0.75, abs=0.02)
    assert answer["rows_per_call"] == 1 and result["settings"]["call_ms"] == [10.0]
    assert "poisson: 2 devices of 1 slots for 150 requests/s of 1: 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ("--mix 8 --p99 5ms --a 1ms", "no number of devices is enough: the longest request alone takes 8 ms"),
        ("--mix 8 --p99 5ms", "give --times FILE, or --a and --b"),
        ("--mix 1 --p99 5 --a 1ms", "--p99: '5' is not a time above 0; write 5us, 50ms"),
        ("--mix 1,x --p99 5ms --a 1ms", "--mix: 'x' is no part of a mix; write STEPS:SHARE"),
        ("--mix 1 --p99 5ms --times nowhere.json", "the times in nowhere.json cannot be read"),
        ('--mix [{"weight":1}] --p99 5ms --a 1ms', "every kind of this mix needs its steps"),
        ("--mix 1 --p99 5ms --a 1ms --b 1", "--b: '1' is not a time; write 0, 5us"),
    ],
)
def test_what_cannot_be_planned_is_said(flags: str, sentence: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as end:
        main(["--rate", "10", *flags.split()])
    assert end.value.code == 2 and capsys.readouterr().err.startswith(f"error: {sentence}")


@pytest.mark.parametrize("least", [1, 7])
@pytest.mark.parametrize("enough", [1, 2, 7, 8, 23, 4096])
def test_the_fewest_devices_are_found(least: int, enough: int):
    tried: list[int] = []
    assert fewest(lambda devices: not tried.append(devices) and devices >= enough, least) == max(least, enough)
    assert len(tried) <= 27 and fewest(lambda devices: False, 1) is None


def test_a_call_is_padded_to_the_sizes_that_the_server_would_choose(tmp_path: Path):
    path = tmp_path / "times.json"
    path.write_text(json.dumps({"1": 1.0, "2": 9.0, "4": 4.0, "8": 4.04}))
    times = read_times(path)
    assert times == {1: 0.001, 2: 0.004, 4: 0.004, 8: 0.00404}, "a batch of two could be padded to four"
    cost = measured(times, 8)
    assert (cost[1], cost[2], cost[5], cost[8]) == (0.001, cost[8], 0.00404, 0.00404), "2 to 7 save less than 3 %"
    assert linear(1.0, 0.5, 2) == [1.0, 1.5, 2.0]
    for wrong, sentence in (("[]", "milliseconds by batch size"), ('{"0": 1}', "no batch size"), ("{", "be read")):
        path.write_text(wrong)
        with pytest.raises(ValueError, match=sentence):
            read_times(path)


def test_measured_times_are_fitted_by_shares_and_never_below_zero(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    exact = fitted({size: 0.004 + 0.003 * size for size in (1, 2, 8, 32)})
    assert (exact.a_s, exact.b_s, exact.off) == pytest.approx((0.004, 0.003, 0.0), abs=1e-12)
    off = fitted({1: 1.0, 100: 110.0})  # a would be below 0: b alone, between 1 and 1.1
    assert off.a_s == 0 and 1 < off.b_s < 1.1 and off.off == pytest.approx(0.05, abs=0.01)
    falls = fitted({1: 1.0, 2: 0.9})
    assert falls.b_s == 0 and falls.a_s == pytest.approx(0.95, abs=0.01)
    assert ((one := fitted({4: 2.0})).a_s, one.b_s, one.off) == pytest.approx((0.0, 0.5, 0.0))
    (tmp_path / "t.json").write_text(json.dumps({"1": 7.0, "2": 10.0, "4": 16.0}))
    flags = f"--rate 10 --mix 1 --p99 1s --times {tmp_path / 't.json'} --arrivals poisson --requests 1000"
    assert main(flags.split()) == 0
    assert "the measured times are --a 4ms --b 3ms within 0%" in capsys.readouterr().out


def test_a_mix_is_read_from_a_line_or_from_the_peers_json():
    mix = parse_mix("1:.5,4:.25,4x8b:.25")
    assert mix == (Kind(1, 1, 0.5), Kind(4, 1, 0.25), Kind(4, 8, 0.25, priority="batch"))
    assert mean_calls(mix) == 0.5 + 1 + 8 and described(mix) == "1: 0.5, 4: 0.25, 4x8b: 0.25"
    peers = '[{"width":512,"height":768,"num_inference_steps":20,"weight":3},{"weight":1}]'
    assert parse_mix(peers) == (Kind(20, 1, 3.0, "512x768"), Kind(None))
    assert shares(parse_mix(peers)).tolist() == [0.75, 0.25]


@pytest.mark.parametrize("text", ["", "0:1", "1001", "1:0", "1:-1", "4x0", "4x257", "1,1", "[]", "[1]", "[", "1:.5;4",
                                  '[{"weight":1,"width":3}]', '[{"weight":"a"}]', '[{"weight":1,"steps":2}]',
                                  '[{"weight":1,"num_inference_steps":1.5}]'])  # fmt: skip
def test_other_mixes_are_refused(text: str):
    with pytest.raises(ValueError, match=r"mix|kind|steps|images|share|entry|width|whole"):
        parse_mix(text)


def test_times_have_a_unit():
    assert [seconds(text) for text in ("5us", "50ms", "2s", ".5m", "1h")] == pytest.approx([5e-6, 0.05, 2, 30, 3600])
    assert seconds_from_zero("0") == 0 == seconds_from_zero("0ms")
    for text in ("0s", "5", "-1s", "s", "1d", "nan", ""):
        with pytest.raises(ValueError, match="is not a time"):
            seconds(text)
