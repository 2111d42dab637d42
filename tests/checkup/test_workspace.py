"""Each file operation fails in turn, by mounts and by system calls that return errors."""

from __future__ import annotations

import pytest

from tests.checkup.processes import check, library

# Calls of the C library, put before its own; BROKEN names the one that fails.
REFUSING = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
static int broken(const char *name) {
    const char *call = getenv("BROKEN");
    return call && !strcmp(call, name);
}
static int refuse(int error) { errno = error; return -1; }
int flock(int fd, int operation) {
    if (broken("flock")) return refuse(ENOLCK);
    if (broken("flock that does nothing")) return 0;
    return ((int (*)(int, int))dlsym(RTLD_NEXT, "flock"))(fd, operation);
}
int fsync(int fd) {
    struct stat about;
    fstat(fd, &about);
    if (broken("fsync of a file") && S_ISREG(about.st_mode)) return refuse(EIO);
    if (broken("fsync of a folder") && S_ISDIR(about.st_mode)) return refuse(EINVAL);
    return ((int (*)(int))dlsym(RTLD_NEXT, "fsync"))(fd);
}
int rename(const char *from, const char *to) {
    if (broken("rename")) return refuse(EPERM);
    return ((int (*)(const char *, const char *))dlsym(RTLD_NEXT, "rename"))(from, to);
}
void *mmap(void *at, size_t size, int protection, int flags, int fd, off_t offset) {
    if (broken("mmap") && fd >= 0) { errno = ENODEV; return MAP_FAILED; }
    return ((void *(*)(void *, size_t, int, int, int, off_t))dlsym(RTLD_NEXT, "mmap"))(
        at, size, protection, flags, fd, offset);
}
void *mmap64(void *at, size_t size, int protection, int flags, int fd, off_t offset) {
    return mmap(at, size, protection, flags, fd, offset);
}
"""


@pytest.fixture(scope="module")
def refusing(tmp_path_factory):
    return str(library(tmp_path_factory.mktemp("library"), REFUSING))


@pytest.mark.parametrize("folder", ["", "new/and/deep"])
def test_a_usable_workspace_is_ok_and_unchanged(tmp_path, refusing, folder):
    found = check("workspace", tmp_path / folder, environment={"LD_PRELOAD": refusing})
    assert {finding.level for finding in found.values()} == {"ok"}
    assert found.keys() == {"temporary files", "workspace", "disk"}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("broken", "name", "words"),
    [
        ("fsync of a file", "written and flushed", "Input/output error"),
        ("fsync of a folder", "flushed with its folder", "Invalid argument"),
        ("rename", "renamed", "Operation not permitted"),
        ("flock", "locked", "No locks available"),
        ("flock that does nothing", "locked", "two holders got the same lock"),
        ("mmap", "mapped into memory", "No such device"),
    ],
)
def test_a_failing_operation_is_an_error_and_does_not_hide_others(
    tmp_path, refusing, broken, name, words
):
    environment = {"LD_PRELOAD": refusing, "BROKEN": broken}
    found = check("workspace", tmp_path, environment=environment)
    (failed,) = (finding for finding in found.values() if finding.level == "error")
    assert failed.check == f"workspace: {name}"
    assert words in failed.found
    assert "--workspace FOLDER" in failed.remedy
    assert "workspace" not in found
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "check_name", "words"),
    [
        ("ro", "workspace", "Read-only file system"),
        ("size=64k", "workspace: written and flushed", "No space left on device"),
        ("size=8m", "disk", "0.0 GB free"),
    ],
)
def test_a_read_only_or_full_disk_is_an_error(tmp_path, options, check_name, words):
    mounts = [f"mount -t tmpfs -o {options} tmpfs {tmp_path}"]
    found = check("workspace", tmp_path, mounts=mounts)[check_name]
    assert found.level == "error"
    assert words in found.found
    assert "--workspace FOLDER" in found.remedy


def test_a_workspace_that_is_a_file_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    found = check("workspace", tmp_path / "file")["workspace"]
    assert found.level == "error"
    assert "Not a directory" in found.found


def test_a_full_disk_for_temporary_files_is_an_error(tmp_path):
    (tmp_path / "full").mkdir()
    mounts = [f"mount -t tmpfs -o size=64k tmpfs {tmp_path}/full"]
    environment = {"TMPDIR": str(tmp_path / "full")}
    found = check("workspace", tmp_path, mounts=mounts, environment=environment)
    assert (found["temporary files"].level, found["workspace"].level) == ("error", "ok")
    assert "No space left" in found["temporary files"].found
    assert "TMPDIR=" in found["temporary files"].remedy
