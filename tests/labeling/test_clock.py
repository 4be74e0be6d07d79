import threading

from ray_fer.labeling.clock import every


def test_it_is_done_again_and_again_and_not_afterwards() -> None:
    calls = 0
    enough = threading.Event()

    def act() -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            enough.set()

    with every(0.001, act):
        assert enough.wait(30)
    ended = calls
    assert not [thread for thread in threading.enumerate() if thread.name == "every"]
    assert calls == ended
