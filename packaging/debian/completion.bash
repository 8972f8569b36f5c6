# bash completion for appliance(1)                                          -*- shell-script -*-

_appliance() {
  local cur prev words cword
  _init_completion -n = || return

  local options="--socket --data-dir --url --token --ca-fingerprint --output --no-wait --help --version"
  local commands="@COMMANDS@ help"
  local serve="@SERVE_OPTIONS@"

  case $prev in
    --bundle) _filedir; return ;;
    --output) COMPREPLY=($(compgen -W "table json text" -- "$cur")); return ;;
    --log-format) COMPREPLY=($(compgen -W "plain json" -- "$cur")); return ;;
    --socket | --admin-password-file) _filedir; return ;;
    --data-dir | --run-dir) _filedir -d; return ;;
    --url | --token | --ca-fingerprint | --listen | --node-name | --proxy | --base-path | --bridge) return ;;
  esac

  # the command is the first word that is neither an option nor an option's value
  local command= at i
  for ((i = 1; i < cword; i++)); do
    case ${words[i]} in
      --socket | --data-dir | --url | --token | --ca-fingerprint | --output) ((i++)) ;;
      -*) ;;
      *) command=${words[i]} at=$i; break ;;
    esac
  done
  if [[ -z $command ]]; then
    COMPREPLY=($(compgen -W "$commands $options" -- "$cur"))
    return
  fi

  local place=$((cword - at))
  case $command in
    serve) COMPREPLY=($(compgen -W "$serve" -- "$cur")) ;;
    vm) ((place > 1)) || COMPREPLY=($(compgen -W "@VM_VERBS@ --help" -- "$cur")) ;;
    ct) ((place > 1)) || COMPREPLY=($(compgen -W "@CT_VERBS@ --help" -- "$cur")) ;;
    upload)
      if [[ $cur == -* ]]; then
        COMPREPLY=($(compgen -W "--storage --content --filename --checksum --checksum-algorithm --help" -- "$cur"))
      else
        _filedir
      fi
      ;;
    tasks) ((place > 1)) || COMPREPLY=($(compgen -W "cancel --limit --help" -- "$cur")) ;;
    audit) ((place > 1)) || COMPREPLY=($(compgen -W "verify --limit --help" -- "$cur")) ;;
    token) ((place > 1)) || COMPREPLY=($(compgen -W "create list delete --help" -- "$cur")) ;;
    doctor) COMPREPLY=($(compgen -W "@DOCTOR_OPTIONS@" -- "$cur")) ;;
    help) COMPREPLY=($(compgen -W "$commands" -- "$cur")) ;;
  esac
} &&
  complete -F _appliance appliance
