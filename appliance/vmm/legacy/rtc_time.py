"""The arithmetic of the MC146818's calendar: registers from seconds since the epoch and back. Pure.

What a guest writes may be no date at all; any eight bytes give some time, the same on each host, and none raises.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

# Registers of the calendar (MC146818A datasheet, figure 11); the century is where PCs have it, and the FADT says so
SECONDS, SECONDS_ALARM, MINUTES, MINUTES_ALARM, HOURS, HOURS_ALARM, WEEKDAY, DAY, MONTH, YEAR = range(10)
CENTURY = 0x32
TIME_REGISTERS = (SECONDS, MINUTES, HOURS, WEEKDAY, DAY, MONTH, YEAR, CENTURY)

B_BINARY, B_24_HOURS = 0x04, 0x02
_PM = 0x80
_DAY_S = 86400


def days_from_civil(year: int, month: int, day: int) -> int:
    """Days since 1970-01-01 in the proleptic Gregorian calendar, years from March (month 1-12; any day)."""
    year -= month <= 2
    of_era = year % 400
    of_year = (153 * ((month + 9) % 12) + 2) // 5 + day - 1
    return year // 400 * 146097 + of_era * 365 + of_era // 4 - of_era // 100 + of_year - 719468


def civil_from_days(days: int) -> tuple[int, int, int]:
    """(year, month, day): the inverse."""
    days += 719468
    era, of_era = divmod(days, 146097)
    year = (of_era - of_era // 1460 + of_era // 36524 - of_era // 146096) // 365
    of_year = of_era - (365 * year + year // 4 - year // 100)
    month = (5 * of_year + 2) // 153
    day = of_year - (153 * month + 2) // 5 + 1
    month = month + 3 if month < 10 else month - 9
    return year + era * 400 + (month <= 2), month, day


def encode(value: int, mode: int) -> int:
    """0-99 as register B says: binary or BCD."""
    return value if mode & B_BINARY else value // 10 << 4 | value % 10


def decode(raw: int, mode: int) -> int:
    return raw if mode & B_BINARY else (raw >> 4) * 10 + (raw & 0x0F)


def encode_hour(hour: int, mode: int) -> int:
    if mode & B_24_HOURS:
        return encode(hour, mode)
    return encode(hour % 12 or 12, mode) | (_PM if hour >= 12 else 0)


def decode_hour(raw: int, mode: int) -> int:
    if mode & B_24_HOURS:
        return decode(raw, mode)
    return decode(raw & ~_PM, mode) % 12 + (12 if raw & _PM else 0)


def registers_at(seconds: int, mode: int) -> dict[int, int]:
    """The calendar's registers at `seconds` since the epoch, as register B (`mode`) wants them."""
    days, of_day = divmod(seconds, _DAY_S)
    year, month, day = civil_from_days(days)
    return {
        SECONDS: encode(of_day % 60, mode),
        MINUTES: encode(of_day // 60 % 60, mode),
        HOURS: encode_hour(of_day // 3600, mode),
        WEEKDAY: encode((days + 4) % 7 + 1, mode),  # 1 is Sunday; 1970 began on a Thursday
        DAY: encode(day, mode),
        MONTH: encode(month, mode),
        YEAR: encode(year % 100, mode),
        CENTURY: encode(year // 100 % 100, mode),
    }


def seconds_of(registers: Sequence[int] | Mapping[int, int], mode: int) -> int:
    """Seconds since the epoch of what the registers say. Fields out of range carry over into the next."""
    year = decode(registers[CENTURY], mode) * 100 + decode(registers[YEAR], mode)
    month = min(max(decode(registers[MONTH], mode), 1), 12)
    days = days_from_civil(year, month, decode(registers[DAY], mode))
    hour = decode_hour(registers[HOURS], mode)
    return days * _DAY_S + hour * 3600 + decode(registers[MINUTES], mode) * 60 + decode(registers[SECONDS], mode)


def next_alarm(after: int, registers: Sequence[int] | Mapping[int, int], mode: int) -> int | None:
    """The first second later than `after` that the alarm registers match, or None: there is none (hour 30).

    The two highest bits set in one of them: any will do (datasheet, "Time, Calendar and Alarm Locations").
    """

    def wanted(register: int, value: int) -> int | None:
        return None if registers[register] & 0xC0 == 0xC0 else value

    hour = wanted(HOURS_ALARM, decode_hour(registers[HOURS_ALARM], mode))
    minute = wanted(MINUTES_ALARM, decode(registers[MINUTES_ALARM], mode))
    second = wanted(SECONDS_ALARM, decode(registers[SECONDS_ALARM], mode))
    at, end = after + 1, after + 1 + _DAY_S
    while at < end:  # at most 24 steps of an hour, 60 of a minute, 60 of a second, and as much again past midnight
        if hour is not None and at // 3600 % 24 != hour:
            at += 3600 - at % 3600
        elif minute is not None and at // 60 % 60 != minute:
            at += 60 - at % 60
        elif second is not None and at % 60 != second:
            at += 1
        else:
            return at
    return None
