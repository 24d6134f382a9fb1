"""Who could write a path: by its owner and rights, its folders, and the links on the way."""

import os

import pytest

from bignas_jax.trust import why_not_trusted

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")


@pytest.fixture
def file(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").write_text("x")
    return tmp_path / "a" / "b" / "file"


def test_a_file_of_the_users_own_is_trusted(file):
    assert why_not_trusted(file) is None and why_not_trusted(file.parent) is None


@pytest.mark.parametrize("up", [0, 1, 2])
def test_what_everybody_may_write_is_not_trusted_nor_what_lies_in_it(file, up):
    place = [file, *file.parents][up]
    place.chmod(0o777)
    assert why_not_trusted(file) == f"{place} can be written by everybody"


def test_where_everybody_may_write_and_change_only_their_own_is_safe(file):
    file.parent.parent.chmod(0o1777)
    assert why_not_trusted(file) is None
    file.parent.chmod(0o1777)
    assert why_not_trusted(file) is None
    assert "everybody" in why_not_trusted(file.parent)  # as the folder itself others may add files to it


@as_root
@pytest.mark.parametrize("up", [0, 1, 2])
def test_what_belongs_to_another_user_is_not_trusted(file, up):
    place = [file, *file.parents][up]
    os.chown(place, 12345, -1)
    assert why_not_trusted(file) == f"{place} belongs to user 12345"


@as_root
def test_a_group_with_others_is_not_trusted(file):
    os.chown(file, -1, 12345)
    file.chmod(0o664)
    assert why_not_trusted(file) == f"{file} can be written by group 12345"
    file.chmod(0o644)
    assert why_not_trusted(file) is None


def test_a_link_leads_no_further_than_its_goal_and_its_own_place(file, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(file.parent)
    assert why_not_trusted(link / "file") is None
    file.parent.chmod(0o777)
    assert why_not_trusted(link / "file") == f"{file.parent} can be written by everybody"
    file.parent.chmod(0o755)
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "open" / "link").symlink_to(file.parent)
    assert why_not_trusted(tmp_path / "open" / "link" / "file") == f"{tmp_path / 'open'} can be written by everybody"


@as_root
def test_a_link_of_another_user_is_not_trusted(file, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(file)
    os.lchown(link, 12345, -1)
    assert why_not_trusted(link) == f"{link} belongs to user 12345"


def test_what_is_not_there_is_an_error_of_the_system(tmp_path):
    with pytest.raises(FileNotFoundError):
        why_not_trusted(tmp_path / "nothing")
