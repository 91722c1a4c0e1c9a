# imports = [ ./module.nix ]; programs.overfall.enable = true;
{ config, lib, pkgs, ... }:

let
  cfg = config.programs.overfall;
in
{
  options.programs.overfall = {
    enable = lib.mkEnableOption "overfall, an overlay file system for every kernel";

    package = lib.mkOption {
      type = lib.types.package;
      default = pkgs.callPackage ./package.nix { };
      defaultText = lib.literalExpression "pkgs.callPackage ./package.nix { }";
      description = "The package to use.";
    };
  };

  config = lib.mkIf cfg.enable {
    environment.systemPackages = [ cfg.package ];
    # Where mount(8) looks for mount.fuse.overfall, also for fileSystems.
    system.fsPackages = [ cfg.package ];
    boot.kernelModules = [ "fuse" "overlay" ];
  };
}
