"""Corpora that need no download: general sounds, infant-like cries, and a clinical set of them.

They let the quickstart and the tests run on a fresh machine. They are synthetic: no result on them
is evidence about infants, as the cries differ by `cries.CRIES` and `clinical.INJURY`, tables made
up for the purpose. Imported by worker processes, so imports little.
"""

from cryjax.data.synthetic.clips import CORPORA, LOWEST_RATE_HZ, Clip

__all__ = ["CORPORA", "LOWEST_RATE_HZ", "Clip"]
