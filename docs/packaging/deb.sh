#!/bin/sh
# Makes target/debian/overfall_VERSION_ARCHITECTURE.deb. Needs `cargo install cargo-deb`.
set -eu
cd "$(dirname "$0")/../.."
cargo build --release --locked
rm -rf target/packaging
SBIN=/usr/sbin docs/packaging/install.sh /usr "$PWD/target/packaging"
# Debian has both licences elsewhere, and wants its pages compressed and without a time.
rm -r target/packaging/usr/share/licenses
find target/packaging/usr/share/man -type f -exec gzip -9n {} +
cargo deb --no-build --locked --strip
