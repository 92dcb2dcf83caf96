"""Reports: charts of the metrics of runs."""
