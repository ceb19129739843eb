#!/usr/bin/env bash
# The status line of Claude Code: its JSON on stdin, one line on stdout, for example
#   cost: $0.42 | ctx: 17% of 200k | git: fix-login - A:1 M:2 ??:3
# A: staged, M: changed but not staged, ??: untracked. A part that is not known is left out.
# Any field may be missing or null, and is until the first answer.
set -uo pipefail
export LC_ALL=C  # a decimal point, whatever the language

# Prints four things, a line each: cost, percentage of the context, its size (empty: unknown), and
# the folder, last because its name may contain anything.
facts() {
  jq --raw-input --slurp --raw-output '
    (try fromjson catch null) as $in
    | def at($path): try ($in | getpath($path)) catch null;
      def number($path): at($path) | if type == "number" then . else 0 end;
      def text($path): at($path) | if type == "string" then . else "" end;
      def size: if . >= 1e6 then "\(. / 1e5 | floor / 10)M"
                elif . >= 1000 then "\(. / 1000 | floor)k"
                elif . >= 1 then "\(floor)"
                else "" end;
      def used: reduce ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
                as $kind (0; . + number(["context_window", "current_usage", $kind]));
      number(["context_window", "context_window_size"]) as $size
    | (if at(["context_window", "used_percentage"]) | type == "number"
       then number(["context_window", "used_percentage"])
       elif $size >= 1 then 100 * used / $size
       else 0 end) as $percent
    | number(["cost", "total_cost_usd"]),
      ([0, ([100, $percent] | min)] | max | floor),
      ($size | size),
      ([text(["workspace", "current_dir"]), text(["cwd"])] | map(select(. != "")) | first // "")
  ' 2>/dev/null
}

# Prints `branch - A:n M:n ??:n`, or nothing outside a repository or when git takes too long.
git_state() {
  timeout 2 git --no-optional-locks -C "$1" status --porcelain=v2 --branch \
    --ignore-submodules=dirty 2>/dev/null | awk '
    /^# branch.oid /  { commit = substr($3, 1, 7) }
    /^# branch.head / { branch = substr($0, 15) }
    /^[12] / { staged += substr($2, 1, 1) != "."; changed += substr($2, 2, 1) != "." }
    /^u /    { changed++ }
    /^[?] /  { untracked++ }
    END {
      if (branch == "(detached)") branch = commit
      if (branch != "") printf "%s - A:%d M:%d ??:%d", branch, staged, changed, untracked
    }'
}

cost=0 percent=0 size='' folder=''
{
  IFS= read -r cost
  IFS= read -r percent
  IFS= read -r size
  IFS= read -r -d '' folder
} < <(facts)
folder="${folder%$'\n'}"

printf -v line 'cost: $%.2f' "${cost:-0}" 2>/dev/null
[[ -n $size ]] && line+=" | ctx: ${percent}% of ${size}"
git=$(git_state "${folder:-$PWD}") && [[ -n $git ]] && line+=" | git: ${git}"
printf '%s\n' "$line"
