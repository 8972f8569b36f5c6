# bash completion for appliance(1)                                          -*- shell-script -*-

_appliance() {
  local cur prev words cword
  _init_completion -n = || return

  local options="--socket --data-dir --url --token --ca-fingerprint --output --no-wait --help --version"
  local commands="vm ct get create set delete upload tasks audit token doctor serve help"
  local serve="--data-dir --run-dir --listen --node-name --admin-password-file --bridge --proxy --base-path --log-format --verbose --help"
  local verbs="list create status config set start shutdown stop reboot console resize clone delete"

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
    vm) ((place > 1)) || COMPREPLY=($(compgen -W "$verbs reset suspend resume --help" -- "$cur")) ;;
    ct) ((place > 1)) || COMPREPLY=($(compgen -W "$verbs --help" -- "$cur")) ;;
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
    doctor) COMPREPLY=($(compgen -W "--data-dir --bundle --output --help" -- "$cur")) ;;
    help) COMPREPLY=($(compgen -W "$commands" -- "$cur")) ;;
  esac
} &&
  complete -F _appliance appliance
