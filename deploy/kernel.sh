#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# Provides a kernel to run BDR's module in a virtual machine, without changing the host: the
# packages of a kernel >= 6.8 are downloaded and unpacked into a directory, not installed, so
# neither apt's sources nor the bootloader change.
#   deploy/kernel.sh DIR            leaves DIR/image (a link), DIR/headers (a link)
#                                   and DIR/release (its version)
#   deploy/kernel.sh --source DIR   unpacks the source of that kernel into DIR
set -eu
want=binary
if [ "${1:-}" = --source ]; then
	want=source
	shift
fi
dir=${1:?directory}
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
if [ $want = source ]; then
	[ -e "$dir/Makefile" ] && exit 0
else
	[ -e "$dir/release" ] && [ -e "$dir/image" ] && [ -e "$dir/headers/Makefile" ] && exit 0
fi

fail() {
	echo "kernel: $*" >&2
	exit 1
}

for tool in apt-get apt-cache dpkg-deb dpkg; do
	command -v "$tool" >/dev/null ||
		fail "no $tool here: give VM_KERNEL=DIR with image, headers and release of a kernel >= 6.8"
done

arch=$(dpkg --print-architecture)
# shellcheck source=/dev/null
. /etc/os-release
case ${ID:-} in
ubuntu) image=linux-image-generic headers=linux-headers-generic ;;
*) image=linux-image-$arch headers=linux-headers-$arch ;;
esac

version_of() { # the upstream version that installing $image would bring
	# shellcheck disable=SC2086
	apt-cache $options policy "$image" | sed -n 's/^  Candidate: \([0-9]*\.[0-9]*\).*/\1/p'
}

new_enough() {
	[ -n "$1" ] && [ "$(printf '%s\n6.8\n' "$1" | sort -V | head -n 1)" = 6.8 ]
}

options=
version=$(version_of)
if [ -z "$version" ]; then
	apt-get update -q >/dev/null 2>&1 || true
	version=$(version_of)
fi
if ! new_enough "$version"; then
	[ "${ID:-}" = debian ] ||
		fail "the archive's kernel is ${version:-absent}, wanted >= 6.8: give VM_KERNEL=DIR"
	# A private configuration: the host's lists and sources do not change.
	mkdir -p "$dir/apt/lists/partial" "$dir/apt/cache/archives/partial"
	mirror=$(apt-cache policy | sed -n 's|.* \(http[^ ]*/debian\)/\{0,1\} .*/main .*|\1|p' | head -n 1)
	cat >"$dir/apt/sources.list" <<-END
		deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] ${mirror:-http://deb.debian.org/debian} ${VERSION_CODENAME:-bookworm}-backports main
	END
	options="-o Dir::Etc::sourcelist=$dir/apt/sources.list -o Dir::Etc::sourceparts=/nonexistent"
	options="$options -o Dir::State::lists=$dir/apt/lists -o Dir::Cache=$dir/apt/cache"
	options="$options -o APT::Sandbox::User=root"
	# shellcheck disable=SC2086
	apt-get $options update -q >/dev/null || fail "cannot read the package lists of backports"
	version=$(version_of)
	new_enough "$version" || fail "backports' kernel is ${version:-absent}, wanted >= 6.8"
fi

if [ $want = source ]; then
	[ "${ID:-}" = debian ] || fail "unpack a kernel's source into $dir yourself"
	package=linux-source-$version
	echo "kernel: downloading $package"
	mkdir -p "$dir/deb"
	# shellcheck disable=SC2086
	(cd "$dir/deb" && apt-get $options download -qq -o APT::Sandbox::User=root "$package")
	dpkg-deb -x "$dir"/deb/*.deb "$dir/deb"
	tar -C "$dir" --strip-components=1 -xf "$dir/deb/usr/src/$package.tar.xz"
	rm -rf "$dir/deb" "$dir/apt"
	exit
fi

depends() { # the packages of a kernel that a metapackage leads to, a name a line
	# shellcheck disable=SC2086
	apt-cache $options depends --recurse --no-recommends --no-suggests --no-conflicts \
		--no-breaks --no-replaces --no-enhances "$@" |
		grep -E '^linux-(image|headers|kbuild|modules|modules-extra|hwe[^ ]*headers)-[0-9]' |
		grep -vE -- '-(unsigned|dbg)$' | sort -u
}

packages=$(depends "$image" "$headers")
[ -n "$packages" ] || fail "found no kernel behind $image"
echo "kernel: downloading" $packages
rm -rf "$dir/debs" "$dir/root"
mkdir -p "$dir/debs" "$dir/root"
(
	cd "$dir/debs"
	# shellcheck disable=SC2086
	apt-get $options download -qq -o APT::Sandbox::User=root $packages
)
for package in "$dir"/debs/*.deb; do
	dpkg-deb -x "$package" "$dir/root"
done
rm -rf "$dir/debs" "$dir/apt"

release=$(basename "$dir"/root/boot/vmlinuz-*)
release=${release#vmlinuz-}
# Since the merge of /usr in Debian 13 modules may be packed under usr/lib.
if [ -d "$dir/root/usr/lib/modules" ] && [ ! -e "$dir/root/lib" ]; then
	ln -s usr/lib "$dir/root/lib"
fi
# The headers refer to each other by the path of an installation.
headers=$dir/root/usr/src/linux-headers-$release
sed -i "s#\([ =]\)/usr/src/#\1$dir/root/usr/src/#g" "$headers/Makefile"
if [ -L "$headers/scripts" ] && [ ! -e "$headers/scripts" ]; then
	fail "the headers' scripts are missing from the packages: $packages"
fi
# Would require pahole, for type information that is not used here.
rm -f "$headers/vmlinux"
ln -sfn "root/usr/src/linux-headers-$release" "$dir/headers"
ln -sfn "root/boot/vmlinuz-$release" "$dir/image"
PATH=$PATH:/sbin:/usr/sbin depmod -a -b "$dir/root" "$release"
echo "$release" >"$dir/release"
