"""HTTP: REST, SSE, WebSocket and their guard. Stage 2; imported by cluster only."""
