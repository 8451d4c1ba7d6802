"""The page of `GET /`: static files, served by `edge.admin_api`. uPlot 1.6.32 is vendored from npm, MIT licence."""
