#!/bin/sh
# Makes the tree of the executor image `python` out of extracted Debian packages, and that of every image that
# extends it: the recipe of such a one comes with a script of its own, which lies beside this one as `further.sh`.
#
# Run by mmdebstrap as two hooks of ONE invocation, with the same command for both (see README.md):
#
#     --setup-hook='sh /path/to/customize.sh "$1"' --extract-hook='sh /path/to/customize.sh "$1"'
#
# Argument:     the tree, an absolute path.
# Environment:  MMDEBSTRAP_HOOK, set by mmdebstrap: `setup` (tree still empty) or `extract` (packages unpacked,
#               none configured, the .deb files still in the tree's apt cache).
# Needs:        root; variant `extract`; `--skip=chroot/mount` (this script deletes in the tree and refuses to run while
#               anything is mounted in it: mmdebstrap would bind the host's /dev, /proc and /sys there);
#               `--skip=cleanup` (this script cleans, and takes away files that mmdebstrap's own cleanup insists to
#               find); on the host sh, coreutils, findutils, grep, sed, awk, tar, dpkg-deb.
# Result:       the finished tree, and in it usr/share/tako-vm/packages.tsv
#               (name, version, architecture, sha256 of the .deb; separated by tabs; sorted).
# Any failure, and any finding of the audit at the end, is a non-zero exit: the tree must then be thrown away.
#
# No maintainer script of a package runs. What those would have done, and a sandbox needs, is done here.

set -eu
umask 022
LC_ALL=C
export LC_ALL

fail() {
    echo "customize.sh: $*" >&2
    exit 1
}

[ $# -eq 1 ] || fail "usage: customize.sh TREE"
T=${1%/}
case "$T" in
    '') fail "the tree must not be /" ;;
    /*) ;;
    *) fail "the tree must be an absolute path: $T" ;;
esac
[ -d "$T" ] || fail "no such directory: $T"
T=$(realpath "$T")
[ "$T" != / ] || fail "the tree must not be /"
case "$T" in
    *[!A-Za-z0-9/._+-]*) fail "odd characters in the path of the tree: $T" ;;
esac
mounted() {
    awk -v t="$T/" 'index($5, t) == 1 { print $5 }' /proc/self/mountinfo
}

# Nothing of the caller's environment reaches a command that runs in the tree.
in_tree() {
    env -i PATH=/usr/sbin:/usr/bin HOME=/tmp LC_ALL=C.UTF-8 PYTHONHASHSEED=0 PYTHONNOUSERSITE=1 \
        chroot "$T" "$@"
}

# What an image that extends `python` may say in its `further.sh`:
WITHOUT=""          # packages that others depend on, and that are not even downloaded
KEEP=""             # packages of DROP, below, that it needs after all
further_prune() {   # after everything that `python` has no use for is gone
    :
}
further_configure() { # when the tree's own Python can be run, before anything is compiled
    :
}
further_audit() {   # at the end
    :
}
# shellcheck source=rootfs/data/customize.sh
[ ! -f "${0%/*}/further.sh" ] || . "${0%/*}/further.sh"

# --- hook 1: before anything is unpacked -----------------------------------------------------------------------------

# /bin, /sbin, /lib are links into /usr, as on every Debian 12 installation. The packages still ship both forms, so the
# links have to exist before they are unpacked.
setup() {
    links="bin sbin lib"
    case "$(dpkg --print-architecture)" in
        amd64) links="$links lib64" ;;
    esac
    for d in $links; do
        mkdir -p "$T/usr/$d"
        ln -s "usr/$d" "$T/$d"
    done
    # What is said to be installed is not downloaded. Dpkg never runs, and its database does not stay in the tree.
    for p in $WITHOUT; do
        printf 'Package: %s\nStatus: install ok installed\nVersion: 999:0\nArchitecture: all\n' "$p"
        printf 'Maintainer: none\nDescription: left out\n\n'
    done >>"$T/var/lib/dpkg/status"
}

# --- hook 2: the packages are unpacked -------------------------------------------------------------------------------

# Packages that come only as dependencies of maintainer scripts, or of packages in this very list, or (PyPy) of its tests,
# of which CPython runs some.
DROP="dpkg tar debconf mawk debianutils libmd0 libzstd1 gcc-12-base readline-common libtirpc-common
      perl-base init-system-helpers cdebconf sensible-utils pypy3 pypy3-lib"

# The paths of one .deb, one a line, without directories, after usrmerge.
files_of() {
    dpkg-deb --fsys-tarfile "$1" | tar --list --file - \
        | sed -e '/\/$/d' -e 's#^\./##' -e 's#^\(s\{0,1\}bin\|lib[^/]*\)/#usr/\1/#'
}

packages() {
    debs="$T/var/cache/apt/archives"
    ls "$debs"/*.deb >/dev/null 2>&1 || fail "no .deb files in the tree's apt cache (was --skip or the variant changed?)"
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    : >"$work/tsv"
    : >"$work/kept"
    : >"$work/dropped"
    for deb in "$debs"/*.deb; do
        name=$(dpkg-deb --field "$deb" Package)
        dropped=no
        for d in $DROP; do
            [ "$d" != "$name" ] || dropped=yes
        done
        for d in $KEEP; do
            [ "$d" != "$name" ] || dropped=no
        done
        if [ "$dropped" = yes ]; then
            files_of "$deb" >>"$work/dropped"
            continue
        fi
        files_of "$deb" >>"$work/kept"
        # apt has checked each file against the signed Release file; this is the digest of those very bytes.
        sum=$(sha256sum <"$deb")
        printf '%s\t%s\t%s\t%s\n' "$name" "$(dpkg-deb --field "$deb" Version)" \
            "$(dpkg-deb --field "$deb" Architecture)" "${sum%% *}" >>"$work/tsv"
    done
    sort -u "$work/kept" >"$work/kept.sorted"
    sort -u "$work/dropped" | comm -23 - "$work/kept.sorted" | while IFS= read -r f; do
        rm -f -- "$T/$f"
    done
    mkdir -p "$T/usr/share/tako-vm"
    sort "$work/tsv" >"$T/usr/share/tako-vm/packages.tsv"
}

# Everything that no program in a sandbox reads.
prune() {
    # Device nodes, and what package managers leave.
    rm -rf "${T:?}"/dev/* "${T:?}"/run/* "${T:?}"/tmp/* "${T:?}"/tmp/.[!.]* "${T:?}/boot" "${T:?}/home" "${T:?}/var"
    cd "$T/etc"
    rm -rf apt dpkg debconf.conf cron.* logrotate.d update-motd.d motd issue issue.net skel default/nss alternatives \
        profile.d fstab python3 "python$PYVER" ca-certificates ca-certificates.conf bindresvport.blacklist netconfig \
        xattr.conf rmt machine-id opt
    rmdir default 2>/dev/null || :
    cd "$T/usr"
    rm -rf games include src local lib/binfmt.d lib/systemd lib/valgrind lib/mime lib/apt lib/dpkg libexec/dpkg
    cd "$T/usr/share"
    rm -rf applications base-files bash-completion binfmts bug ca-certificates debconf debianutils dict doc-base dpkg \
        info libc-bin lintian locale man menu misc perl5 pixmaps polkit-1 python3 tabset
    # The licences ask for their text to go with the binaries; nothing else of the documentation is kept.
    find doc ! -type d ! -name copyright -delete
    find doc -type d -empty -delete
    # posix/ and right/ repeat the database; zoneinfo.available_timezones() skips both.
    rm -rf zoneinfo/posix zoneinfo/right
    # Character set converters of iconv(3): Python has its own codecs, and UTF-8 is built into glibc.
    rm -rf "$T"/usr/lib/*-linux-*/gconv
    # Tools for building packages or systems, and scripts for interpreters that are not here (bash, perl).
    cd "$T/usr/bin"
    rm -f openssl c_rehash iconv localedef ldd pldd zdump tzselect catchsegv py3clean py3compile py3versions \
        pygettext3 "pygettext$PYVER"
    cd "$T/usr/sbin"
    rm -f iconvconfig zic update-ca-certificates tarcat rmt-tar
    # Python: apport's hook, the marker against pip, and what is left of the stdlib's own tests, unless the recipe
    # asks for all of them.
    cd "$T/usr/lib/python$PYVER"
    rm -rf sitecustomize.py EXTERNALLY-MANAGED idlelib tkinter
    grep -q "^libpython$PYVER-testsuite	" "$T/usr/share/tako-vm/packages.tsv" \
        || rm -rf test lib2to3/tests distutils/tests unittest/test ctypes/test sqlite3/test
    cd /
}

configure() {
    cd "$T"
    # What a sandbox mounts on, and the few directories that programs expect.
    mkdir -p proc sys dev/shm dev/pts tmp run code input output app root var/tmp
    chmod 0755 . proc sys dev dev/pts run code input output app var
    chmod 1777 tmp var/tmp dev/shm
    chmod 0700 root
    ln -sfn /run var/run

    ln -sfn dash usr/bin/sh
    ln -sfn python3 usr/bin/python

    cat >etc/passwd <<'EOF'
root:x:0:0:root:/root:/bin/sh
sandbox:x:1000:1000:sandbox:/tmp:/bin/sh
nobody:x:65534:65534:nobody:/nonexistent:/usr/bin/false
EOF
    cat >etc/group <<'EOF'
root:x:0:
tty:x:5:
sandbox:x:1000:
nogroup:x:65534:
EOF
    cat >etc/nsswitch.conf <<'EOF'
passwd: files
group: files
shadow: files
hosts: files dns
networks: files
protocols: files
services: files
ethers: files
rpc: files
EOF
    cat >etc/hosts <<'EOF'
127.0.0.1 localhost sandbox
::1 localhost ip6-localhost ip6-loopback
EOF
    rm -f etc/resolv.conf etc/localtime
    : >etc/resolv.conf
    echo sandbox >etc/hostname
    ln -s /usr/share/zoneinfo/Etc/UTC etc/localtime
    echo Etc/UTC >etc/timezone

    # OpenSSL's default file is /usr/lib/ssl/cert.pem. Debian leaves it out and relies on a directory of hash links,
    # which is read one certificate at a time: ssl.create_default_context() would claim to hold none.
    mkdir -p etc/ssl/certs usr/lib/ssl
    cat "$BUNDLE" >etc/ssl/certs/ca-certificates.crt
    ln -sfn /etc/ssl/certs usr/lib/ssl/certs
    ln -sfn /etc/ssl/openssl.cnf usr/lib/ssl/openssl.cnf
    ln -sfn /etc/ssl/certs/ca-certificates.crt usr/lib/ssl/cert.pem
    rm -rf etc/ssl/private usr/lib/ssl/private usr/lib/ssl/misc
    cd /

    find "$T/usr" "$T/etc" -mindepth 1 -type d -empty -delete
    mkdir -p "$T/usr/lib/python3/dist-packages" "$T/usr/sbin"
    chown -hR 0:0 "$T"
    find "$T" -xdev ! -type l -perm /6000 -exec chmod ug-s {} +

    in_tree /usr/sbin/ldconfig
    rm -rf "$T/var/cache"
}

# Byte code that is valid whatever the time stamps say: the image gives every file the same one, and nothing can be
# written at run time. The hash seed is fixed (see in_tree): sets among the constants are stored in hash order, and two
# builds of the same packages have to agree. Some files of the stdlib's tests are no Python on purpose.
BROKEN='/(bad_?coding|badsyntax|lib2to3/tests/data/)'
compile() {
    find "$T/usr/lib" -type d -name __pycache__ -prune -exec rm -rf {} +
    in_tree /usr/bin/python3 -B -m compileall -q -j0 --invalidation-mode unchecked-hash -x "$BROKEN" \
        "/usr/lib/python$PYVER" /usr/lib/python3/dist-packages || fail "compileall failed"
    rm -rf "$T"/tmp/* "$T"/dev/shm/*
}

# A tree that is not what it should be is refused here rather than found out by a program.
audit() {
    bad=$(find "$T" -xdev \( -type b -o -type c -o -type p -o -type s \) -o ! -type l -perm /6000 -o ! -uid 0 -o ! -gid 0)
    [ -z "$bad" ] || fail "device nodes, set-id bits or foreign owners: $bad"
    bad=$(find "$T" -xdev ! -type l -perm -0002 ! -path "$T/tmp" ! -path "$T/var/tmp" ! -path "$T/dev/shm")
    [ -z "$bad" ] || fail "writable for everyone: $bad"
    for d in bin sbin lib; do
        [ "$(readlink "$T/$d")" = "usr/$d" ] || fail "/$d is not a link to usr/$d"
    done
    # Links to nothing (/var/run and those into /proc apart).
    find "$T" -xdev -type l | while IFS= read -r l; do
        to=$(readlink "$l")
        case "$to" in
            /proc/* | /run) continue ;;
            /*) [ -e "$T$to" ] || [ -L "$T$to" ] || echo "$l -> $to" ;;
            *) [ -e "${l%/*}/$to" ] || [ -L "${l%/*}/$to" ] || echo "$l -> $to" ;;
        esac
    done >"$work/links"
    [ ! -s "$work/links" ] || fail "links to nothing: $(cat "$work/links")"
    # Scripts for interpreters that are not in the tree.
    find "$T/usr/bin" "$T/usr/sbin" -type f | while IFS= read -r f; do
        first=$(head -c 2 "$f" | tr -d '\000')
        [ "$first" = '#!' ] || continue
        i=$(sed -n '1s/^#! *\([^ ]*\).*$/\1/p' "$f")
        [ -x "$T$i" ] || [ -L "$T$i" ] || echo "$f needs $i"
    done >"$work/scripts"
    [ ! -s "$work/scripts" ] || fail "no interpreter: $(cat "$work/scripts")"
    # Every shared library that a program or extension names is found.
    find "$T/usr" -xdev -type f \( -path "$T/usr/bin/*" -o -path "$T/usr/sbin/*" -o -name '*.so' -o -name '*.so.*' \) \
        ! -name 'ld-linux*' | sed "s#^$T##" >"$work/binaries"
    # shellcheck disable=SC2016  # expanded by the shell in the tree
    in_tree /usr/bin/sh -c '
        while IFS= read -r f; do
            [ "$(head -c 4 "$f" | tail -c 3)" = ELF ] || continue
            /usr/bin/ld.so --list "$f" 2>&1 || echo "not found: $f"
        done' <"$work/binaries" >"$work/ldd" 2>&1
    ! grep -F 'not found' "$work/ldd" >&2 || fail "shared libraries are missing"
    [ "$(in_tree /usr/bin/python3 -B -c 'import ssl; print(ssl.create_default_context().cert_store_stats()["x509_ca"] > 100)')" = True ] \
        || fail "the certificate bundle is not used"
    bad=$(find "$T" -xdev -name '*.py' \( -path "*/python$PYVER/*" -o -path '*/dist-packages/*' \) | grep -vE "$BROKEN" | while IFS= read -r f; do
        b=${f##*/}
        [ -f "${f%/*}/__pycache__/${b%.py}.cpython-$(echo "$PYVER" | tr -d .).pyc" ] || echo "$f"
    done)
    [ -z "$bad" ] || fail "not compiled: $bad"
    further_audit
    bad=$(find "$T/tmp" "$T/var/tmp" "$T/dev/shm" "$T/run" -mindepth 1)
    [ -z "$bad" ] || fail "left behind: $bad"
}

case "${MMDEBSTRAP_HOOK:-}" in
    setup) setup ;;
    extract)
        [ -z "$(mounted)" ] || fail "mounted inside the tree: $(mounted)"
        PYVER=$(readlink "$T/usr/bin/python3") || fail "no python3 in the tree"
        PYVER=${PYVER#python}
        [ -x "$T/usr/bin/python$PYVER" ] || fail "no interpreter in the tree"
        packages
        BUNDLE="$work/bundle"
        cat "$T"/usr/share/ca-certificates/mozilla/*.crt >"$BUNDLE"
        prune
        further_prune
        configure
        further_configure
        compile
        audit
        ;;
    *) fail "MMDEBSTRAP_HOOK is neither setup nor extract" ;;
esac
