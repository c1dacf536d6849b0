"""Run by the WebUI when it starts: installs what the host does not bring along."""

import launch

if not launch.is_installed("av"):
    launch.run_pip("install av", "PyAV, which ZS² writes MP4 and WebM with")
