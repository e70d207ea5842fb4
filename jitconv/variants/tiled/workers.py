"""Under its older name: jitconv/variants/workers.py."""

from jitconv.variants.workers import ALONE as ALONE
from jitconv.variants.workers import each_worker as each_worker
