"""Lays out the files of Prometheus and Grafana where a running fleet's are found: in `metrics/` of its home.

Neither program need exist. Prometheus reads `prometheus/prometheus.yml`, which takes its targets from the file that Ray
keeps up to date; Grafana gets `grafana/fleet.json` beside Ray's own dashboards, through
`RAY_METRICS_GRAFANA_DASHBOARD_OUTPUT_DIR`.
"""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

FOLDER = "metrics"
"""In the fleet's home."""
DISCOVERY_NAME = "prom_metrics_service_discovery.json"
"""The list of targets, in Ray's temporary folder."""
GRAFANA_VARIABLE = "RAY_METRICS_GRAFANA_DASHBOARD_OUTPUT_DIR"
"""Names the folder of dashboards to Ray's dashboard, which adds its own to it."""

PROMETHEUS = """\
global:
  scrape_interval: 10s
  evaluation_interval: 10s

rule_files:
  - alerts.yaml

scrape_configs:
  - job_name: ray
    file_sd_configs:
      - files:
          - {discovery}
"""


def lay_out(home: Path, ray_temp_dir: Path) -> dict[str, str]:
    """Write the files; return what Ray's environment needs to know of them.

    Args:
        home: the fleet's home.
        ray_temp_dir: the `--temp-dir` of its Ray head.
    """
    grafana, prometheus = home / FOLDER / "grafana", home / FOLDER / "prometheus"
    for folder in (grafana, prometheus):
        folder.mkdir(parents=True, exist_ok=True)
    (grafana / "fleet.json").write_text(dashboard(), encoding="utf-8")
    (prometheus / "alerts.yaml").write_text(alerts(), encoding="utf-8")
    # JSON's strings are YAML's.
    discovery = json.dumps(str(ray_temp_dir / DISCOVERY_NAME))
    (prometheus / "prometheus.yml").write_text(PROMETHEUS.format(discovery=discovery), encoding="utf-8")
    return {GRAFANA_VARIABLE: str(grafana)}


def dashboard() -> str:
    """Return the Grafana dashboard, as JSON."""
    return (files(__package__) / "grafana" / "fleet.json").read_text(encoding="utf-8")


def alerts() -> str:
    """Return the alert rules, as YAML."""
    return (files(__package__) / "prometheus" / "alerts.yaml").read_text(encoding="utf-8")
