"""Whether another user could write a file whose content is run as code: kept programs, built kernels."""

import grp
import os
import pathlib
import pwd
import stat


def why_not_trusted(path: str | os.PathLike) -> str | None:
    """Who besides this user (and root) could put something else in a path's place; None if nobody could.

    The owner and the rights of the path count, of all folders that it lies in, and of the links on the way to it. A
    folder in which everybody may write but change only what is their own, as /tmp, counts as safe. So does one that
    the user's own group may write, if it has no other members.

    Raises:
      OSError: the path, or a folder that it lies in, cannot be looked at.
    """
    given = pathlib.Path(os.path.abspath(path))
    real = pathlib.Path(os.path.realpath(given, strict=True))
    for place in dict.fromkeys((given, *given.parents, real, *real.parents)):
        reason = _why_not(os.lstat(place), place == given or place == real)
        if reason:
            return f"{place} {reason}"
    return None


def _why_not(status: os.stat_result, itself: bool) -> str | None:
    if status.st_uid not in (os.geteuid(), 0):
        return f"belongs to user {status.st_uid}"
    if stat.S_ISLNK(status.st_mode) or (status.st_mode & stat.S_ISVTX and not itself):
        return None  # a link has no rights of its own
    if status.st_mode & stat.S_IWOTH:
        return "can be written by everybody"
    if status.st_mode & stat.S_IWGRP and not _is_private(status.st_gid):
        return f"can be written by group {status.st_gid}"
    return None


def _is_private(gid: int) -> bool:
    """Whether a group is root's, or the one that many systems make for this user alone."""
    if gid == 0:
        return True
    try:
        user, group = pwd.getpwuid(os.geteuid()), grp.getgrgid(gid)
    except KeyError:
        return False
    return user.pw_gid == gid and group.gr_name == user.pw_name and set(group.gr_mem) <= {user.pw_name}
