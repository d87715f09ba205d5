# Sourced by the scripts beside it: with --help they print the comment at their head and do nothing.
usage() { sed -n '2,${/^#/!q;s/^# \{0,1\}//p}' "$0"; }
case ${1:-} in
-h | --help)
    usage
    exit
    ;;
esac
