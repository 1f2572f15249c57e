"""PEFT methods; `registry` has them by name. `seeding` is used without PEFT too, so nothing is imported here."""
