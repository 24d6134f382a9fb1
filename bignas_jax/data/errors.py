"""The one error that data raises for what a user can put right."""


class DataError(ValueError):
    """A data set, an image or a setting that training cannot use: one line that says what to do."""


class CorruptImage(DataError):
    """One image that cannot be decoded; the message is its name and the reason."""
