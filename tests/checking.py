"""The type checker that `conftest` has every call of e3jax checked by."""

from beartype import BeartypeConf, beartype

# An int is a float, as PEP 484 has it.
checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
