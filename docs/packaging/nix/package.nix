# callPackage ./package.nix { }
{ lib, rustPlatform }:

let
  manifest = (builtins.fromTOML (builtins.readFile ../../../Cargo.toml)).package;
in
rustPlatform.buildRustPackage {
  pname = manifest.name;
  inherit (manifest) version;

  src = lib.cleanSource ../../..;
  cargoLock.lockFile = ../../../Cargo.lock;

  # They mount, as root and in namespaces: not in the sandbox.
  doCheck = false;

  # No wrapper around it: it looks at the name that it is called by, and finds the fusermount3 of
  # /run/wrappers by itself.
  installPhase = ''
    runHook preInstall
    BINARY=$(find target -type f -path '*/release/overfall' | head -n 1) \
      SBIN=$out/bin sh docs/packaging/install.sh "$out"
    runHook postInstall
  '';

  meta = {
    inherit (manifest) description;
    license = with lib.licenses; [ mit asl20 ];
    platforms = lib.platforms.linux;
    mainProgram = "overfall";
  };
}
