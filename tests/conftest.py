"""Property tests repeat exactly, everywhere: a red build can be reproduced, and a green one does not turn red by luck.

`HYPOTHESIS_PROFILE=explore pytest …` searches with fresh random seeds and ten times the examples instead.
"""

import os

from hypothesis import HealthCheck, settings

from tokencake.traces import core_build

# The suite is about the sources, even where they are compiled, too; so are the processes that it starts. With
# `TOKENCAKE_PURE=0` it is about what is compiled: most tests hold there, those that look into the core do not.
os.environ.setdefault(core_build.PURE, "1")
core_build.choose()

settings.register_profile(
    "repeatable",
    derandomize=True,
    deadline=None,  # a busy machine is not a bug
    suppress_health_check=[HealthCheck.too_slow],
    print_blob=True,
)
settings.register_profile(
    "explore",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    max_examples=1000,
    print_blob=True,
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))
