"""What an operator sees from outside: log lines and metrics. Beside the stages; any part may import it.

`logs` is the one format of log lines, `definitions` the table of metrics, `meter` turns the store's feed into numbers,
`pump` drives it, `launch` hands the numbers to Ray. `grafana/` and `prometheus/` hold a dashboard and alert rules.
"""
