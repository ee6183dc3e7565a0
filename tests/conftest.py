"""What every test shares: hypothesis without a clock."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# A shared machine may pause for a second at any time: slowness is pytest-timeout's business, not each example's.
settings.register_profile(
    "unet-deploy", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow], database=None
)
settings.load_profile("unet-deploy")
