#!/bin/sh
# Installs what `make` built, or takes it away again; `make install` and `make uninstall` call it with
# PREFIX, LIBDIR, DESTDIR, BUILD, VERSION, SONAME, HEADERS and PRIVATE_LIBS in the environment.
#   scripts/install.sh [--uninstall]
set -eu
cd "$(dirname "$0")/.."
case $PREFIX$LIBDIR in *[[:space:]]*)
    echo "install: PREFIX and LIBDIR must not have spaces, found '$PREFIX', '$LIBDIR'" >&2
    exit 1 ;;
esac
for folder in "$PREFIX" "$LIBDIR"; do
    case $folder in /*) ;; *)
        echo "install: PREFIX and LIBDIR must be whole paths, found '$folder'" >&2
        exit 1 ;;
    esac
done

# MODE, what, to where; an optional file has "?" before its mode.
table() {
    echo "755 linnet $PREFIX/bin/linnet"
    for h in $HEADERS; do echo "644 $h $PREFIX/include/$h"; done
    echo "644 $BUILD/liblinnet.a $LIBDIR/liblinnet.a"
    echo "755 $BUILD/liblinnet.so.$VERSION $LIBDIR/liblinnet.so.$VERSION"
    echo "link liblinnet.so.$VERSION $LIBDIR/$SONAME"
    echo "link $SONAME $LIBDIR/liblinnet.so"
    echo "?755 liblinnet_cuda.so $LIBDIR/liblinnet_cuda.so"
    echo "fill packaging/linnet.pc.in $LIBDIR/pkgconfig/linnet.pc"
    for f in linnet-config.cmake linnet-config-version.cmake; do
        echo "fill packaging/$f.in $LIBDIR/cmake/linnet/$f"
    done
    echo "644 $BUILD/share/linnet.1 $PREFIX/share/man/man1/linnet.1"
    echo "644 $BUILD/share/linnet.bash $PREFIX/share/bash-completion/completions/linnet"
    echo "644 $BUILD/share/_linnet $PREFIX/share/zsh/site-functions/_linnet"
    echo "644 $BUILD/share/linnet.fish $PREFIX/share/fish/vendor_completions.d/linnet.fish"
}

# A template with its @NAMES@ filled in. Where the prefix is, is told from where the file lies.
fill() {
    sed -e "s|@VERSION@|$VERSION|g" -e "s|@SONAME@|$SONAME|g" \
        -e "s|@PRIVATE_LIBS@|$PRIVATE_LIBS|g" -e "s|@PRIVATE_LIBS_LIST@|$(echo "$PRIVATE_LIBS" | tr ' ' ';')|g" \
        -e "s|@PREFIX_FROM_PC@|$(realpath -ms --relative-to="$LIBDIR/pkgconfig" "$PREFIX")|g" \
        -e "s|@PREFIX_FROM_CMAKE@|$(realpath -ms --relative-to="$LIBDIR/cmake/linnet" "$PREFIX")|g" "$1"
}

table | while read -r mode from to; do
    to=$DESTDIR$to
    if [ "${1:-}" = --uninstall ]; then
        rm -f "$to"
        continue
    fi
    case $mode in
    link)
        ln -sfn "$from" "$to" ;;
    fill)
        install -d -m 755 "$(dirname "$to")"
        fill "$from" >"$to.new"
        chmod 644 "$to.new"
        mv "$to.new" "$to" ;;
    *)
        [ -e "$from" ] || case $mode in '?'*) continue ;; esac
        install -D -m "${mode#\?}" "$from" "$to" ;;
    esac
done
[ "${1:-}" != --uninstall ] || rmdir "$DESTDIR$LIBDIR/cmake/linnet" 2>/dev/null || true
