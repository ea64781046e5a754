#!/usr/bin/env bash
# Every relative link and every repository path in the documents exists, and none names a path outside of the
# repository.
set -euo pipefail
cd "$(dirname "$0")/.."
fail=0
complain() {
    echo "error: $1" >&2
    fail=1
}

mapfile -t documents < <(git ls-files '*.md')
for document in "${documents[@]}"; do
    folder=$(dirname "$document")

    # [text](target) and [text](target#part); other sites are not looked up.
    while read -r target; do
        target=${target%%#*}
        [ -z "$target" ] || [ -e "$folder/$target" ] || complain "$document links to $target, which is not there"
    done < <(grep -oE '\]\([^)]+\)' "$document" | sed -E 's/^\]\(//; s/\)$//; s/ .*//' | grep -vE '^[a-z]+:' || true)

    # Words that begin like a path in the repository or in the document's folder, in text, code and drawings.
    while read -r path; do
        path=${path%[.,]}
        [ -e "$path" ] || [ -e "$folder/$path" ] || complain "$document names $path, which is not there"
    done < <(grep -oP '(?<![\w./-])(src|docs|examples|tools|tests|fuzz|\.ci|qwen-[a-z-]+)/[\w./-]*' "$document" | sort -u || true)

    if grep -nE '(^|[^A-Za-z0-9_./-])(/(home|root|work|tmp|opt|mnt|srv|Users)/|[A-Z]:\\)' "$document"; then
        complain "$document names a path of some machine"
    fi
done
[ "$fail" = 0 ] && echo "the paths in ${#documents[@]} documents are there"
exit "$fail"
