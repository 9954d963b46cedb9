"""Where policies live: local files (``files``); the only part of ``policy`` that reaches outside the process."""
