"""Idle agents come out by the share of their lives in which they were idle, as if all of them were looked at."""

from itertools import islice
from random import Random

import pytest

from tokencake.policies.parts.idle_agents import IdleAgents, Rank


@pytest.mark.parametrize("seed", range(4))
def test_the_busiest_come_first_at_any_time(seed: int):
    random = Random(seed)
    agents = IdleAgents(512)
    lives: dict[str, tuple[int, float, float]] = {}  # place, birth, busy time
    now_s, looked_at = 0.0, 0

    def rank(name: str) -> Rank:
        nonlocal looked_at
        looked_at += 1
        place, born_s, busy_s = lives[name]
        idle_s = now_s - born_s - busy_s
        return idle_s / (now_s - born_s), -(born_s + busy_s), place, name

    for n in range(512):
        now_s += random.random()
        place = agents.born(now_s)
        busy_s = random.random() ** 4 * 10.0
        lives[f"a{n}"] = (place, now_s, busy_s)
        now_s += random.random()
        agents.put(place, f"a{n}", busy_s)
        if random.random() < 0.2:
            gone = random.choice(list(lives))
            assert agents.remove(lives.pop(gone)[0])
        if n % 32 == 31:
            assert list(agents.busiest(now_s, rank)) == sorted(map(rank, lives))
    assert agents.full
    looked_at = 0
    assert len(list(islice(agents.busiest(now_s, rank), 10))) == 10
    assert looked_at < 40  # of some 400
