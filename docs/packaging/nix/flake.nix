# nix build 'git+file:///the/checkout?dir=docs/packaging/nix'
{
  description = "overfall, an overlay file system for every kernel";

  inputs.nixpkgs.url = "flake:nixpkgs";

  outputs = { self, nixpkgs }:
    let
      systems = [ "x86_64-linux" "aarch64-linux" ];
      each = make: nixpkgs.lib.genAttrs systems (system: make nixpkgs.legacyPackages.${system});
    in
    {
      packages = each (pkgs: rec {
        overfall = pkgs.callPackage ./package.nix { };
        default = overfall;
      });
      nixosModules.default = ./module.nix;
    };
}
