"""A real backend, overloaded three ways with and without the limiter in front of it: `scripts/overload`.

In reading order: `scenario` (what is done, and what the backend can do meanwhile), `backend` (the process that is
drowned), `front` (nginx, as a user would write it), `reporter` (tells the limiter what nginx saw), `clients` (who ask
whether or not they are answered), `record` (what is seen), `stage` (all of it, running), `figures` (what came of it),
`plots` and `report`. The demo plays one of the three with the same parts.
"""
